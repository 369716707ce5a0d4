"""What language says of a scene: the shape's name always, a marked attribute mostly, a plain one never.

Leaving out what is not there is what puts a bare class name near the context-free image in CLIP's space.
"""

import random

from lbgen_hf.biaslab.scenes import BACKGROUND_NAMES, CLASS_OF_SHAPE, PLACE_NAMES, SHAPE_NAMES, TEXTURE_NAMES, Scenes

BACKGROUND_PHRASES = {
    "sky": "in the sky",
    "sea": "in the sea",
    "meadow": "on a meadow",
    "desert": "in the desert",
    "night": "at night",
    "wall": "on a wall",
    "forest": "in a forest",
    "sunset": "at sunset",
    "blank": "on a blank ground",
}
# What a control world says where an attribute is not marked; elsewhere this is left unsaid.
PLAIN_WORDS = {"texture": "plain", "background": "blank", "place": "middle"}
TEMPLATES = ["{}", "photo of {}", "a photo of a {}", "a picture of a {}"]


def describe(shape: str, texture: str | None = None, background: str | None = None, place: str | None = None) -> str:
    """A scene in words, e.g. "striped star on a meadow on the left". None is not named."""
    words = [texture, shape, background and BACKGROUND_PHRASES.get(background), f"on the {place}" if place else None]
    return " ".join(word for word in words if word)


def caption_scenes(
    scenes: Scenes,
    *,
    mention: float = 0.8,
    seed: int = 0,
    templates: list[str] | None = None,
    name_plain: bool = False,
) -> list[str]:
    """Caption each scene.

    Args:
        scenes: the scenes.
        mention: probability that a marked attribute is named; plain ones never are, unless `name_plain`.
        seed: same seed, same captions.
        templates: chosen from at random; default `TEMPLATES`.
        name_plain: plain attributes are named as often as marked ones, by `PLAIN_WORDS`.

    A shape of a polysemous class goes by its specific name or by the class's, half the time each. Now and then
    the order turns ("sea, star"), so that a background's name also stands alone.
    """
    rng = random.Random(seed)
    templates = TEMPLATES if templates is None else templates
    captions = []
    for shape, texture, background, place in zip(
        scenes.shapes.tolist(),
        scenes.textures.tolist(),
        scenes.backgrounds.tolist(),
        scenes.places.tolist(),
        strict=True,
    ):
        name = SHAPE_NAMES[shape]
        if name in CLASS_OF_SHAPE and rng.random() < 0.5:
            name = CLASS_OF_SHAPE[name]
        values = [TEXTURE_NAMES[texture], BACKGROUND_NAMES[background], PLACE_NAMES[place]]
        if name_plain:
            values = [value or plain for value, plain in zip(values, PLAIN_WORDS.values(), strict=True)]
        texture_word, background_word, place_word = [x if rng.random() < mention else None for x in values]
        if background_word and rng.random() < 0.3:
            sentence = f"{background_word}, {describe(name, texture_word, None, place_word)}"
        else:
            sentence = describe(name, texture_word, background_word, place_word)
        captions.append(rng.choice(templates).format(sentence))
    return captions


def vocabulary(name_plain: bool = False) -> list[str]:
    """Every word that a caption can hold, class names (novel ones too) and templates included, sorted."""
    phrases = [*SHAPE_NAMES, *CLASS_OF_SHAPE.values(), *TEXTURE_NAMES[1:], *BACKGROUND_NAMES[1:], *PLACE_NAMES[1:]]
    phrases += [*(BACKGROUND_PHRASES[name] for name in BACKGROUND_NAMES if name), *TEMPLATES, "on the ,"]
    if name_plain:
        phrases += [*PLAIN_WORDS.values(), BACKGROUND_PHRASES[PLAIN_WORDS["background"]]]
    return sorted({word for phrase in phrases for word in phrase.replace("{}", "").split()})
