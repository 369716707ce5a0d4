"""LbGenPipeline with tiny random components: labels, seeds, loading, and what it inherits from diffusers."""

import logging
import re
import shutil
import sys

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CLASS_LABELS, CLASS_WNIDS, LORA_ALPHA, LORA_RANK, make_components, save_lora

from lbgen_hf import pipeline_lbgen
from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline, LbGenPipelineOutput, image_seed

STEPS = 4


def load(folder, **kwargs) -> LbGenPipeline:
    pipe = LbGenPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, *args, **kwargs) -> torch.Tensor:
    return pipe(*args, num_inference_steps=STEPS, output_type="pt", **kwargs).images


@pytest.fixture(scope="module")
def pipe(sd_folder) -> LbGenPipeline:
    return load(sd_folder)


@pytest.fixture
def fresh_pipe(sd_folder) -> LbGenPipeline:
    """One that the test may change."""
    return load(sd_folder)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def library_log(caplog):
    """What diffusers and transformers log, which they keep from the root logger."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


# Labels


def test_names_ids_and_wnids_name_the_same_class(pipe):
    output = pipe(["goldfish", 1, "n01443537"], num_inference_steps=1)
    assert output.class_ids == [1, 1, 1]
    assert output.class_names == ["goldfish"] * 3
    assert pipe.get_label_ids(["star", "n01440764", np.int64(2)]) == [3, 0, 2]
    assert pipe.get_label_ids("crane") == [2]


def test_output_carries_labels_and_seeds_class_by_class(pipe):
    output = pipe(["star", "tench"], images_per_class=2, seed=7, num_inference_steps=1)
    assert isinstance(output, LbGenPipelineOutput)
    assert len(output.images) == 4
    assert output.images[0].size == (64, 64)
    assert output.class_ids == [3, 3, 0, 0]
    assert output.class_names == ["star", "star", "tench", "tench"]
    assert output.seeds == [image_seed(7, class_id, index) for class_id, index in [(3, 0), (3, 1), (0, 0), (0, 1)]]
    assert output.nsfw_content_detected is None


def test_the_prompt_is_the_class_name_and_the_image_the_plain_pipelines(pipe, sd_folder):
    plain = StableDiffusionPipeline.from_pretrained(sd_folder)
    plain.set_progress_bar_config(disable=True)
    ours = sample(pipe, "goldfish", generator=torch.Generator().manual_seed(3))
    theirs = sample(plain, "goldfish", generator=torch.Generator().manual_seed(3), guidance_scale=2.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.allclose(ours, sample(pipe, "tench", generator=torch.Generator().manual_seed(3)), atol=1e-3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("golfish", "unknown class 'golfish': did you mean 'goldfish'"),
        ("zzz", "unknown class 'zzz': see class_labels"),
        (["tench", "n99999999"], "unknown class 'n99999999'"),
        ([], "no class labels given"),
        (4, "class id 4 is not in 0..3"),
        (-1, "class id -1 is not in 0..3"),
        (None, "nothing to generate"),
    ],
)
def test_labels_that_do_not_exist_are_one_line(pipe, labels, message):
    with pytest.raises(UserError, match=message) as error:
        pipe(labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_image_a_class_is_an_error(pipe, count):
    with pytest.raises(UserError, match="images_per_class must be at least 1"):
        pipe("tench", images_per_class=count)


def test_class_lists_that_cannot_work_are_refused():
    components = make_components()
    for labels, wnids, message in [
        ([], None, "empty"),
        (["crane", "star", "crane"], None, "'crane' 2 times"),
        (["crane", "star"], ["n02012849"], "1 class_wnids for 2 class_labels"),
    ]:
        with pytest.raises(UserError, match=message):
            LbGenPipeline(**components, class_labels=labels, class_wnids=wnids)


def test_class_lists_hold_names():
    for labels in (["crane", 3], ["crane", " "]):
        with pytest.raises(UserError, match="no name"):
            LbGenPipeline(**make_components(), class_labels=labels)


def test_a_model_without_a_class_list_gets_imagenets(tmp_path):
    StableDiffusionPipeline(**make_components()).save_pretrained(tmp_path)
    pipe = load(tmp_path)
    assert len(pipe.class_labels) == 1000
    assert pipe.get_label_ids(["goldfish", "n01443537"]) == [1, 1]


def test_components_bring_no_class_list():
    pipe = LbGenPipeline(**make_components())
    pipe.set_progress_bar_config(disable=True)
    assert pipe.class_labels is None
    assert pipe("okapi", num_inference_steps=1).class_names == ["okapi"]
    with pytest.raises(UserError, match="no class list: pass class_labels="):
        pipe(1)


@pytest.mark.parametrize(
    "labels",
    [np.array([1, 3]), torch.tensor([1, 3]), np.array(["goldfish", "star"]), [np.int64(1), torch.tensor(3)], (1, 3)],
)
def test_arrays_and_tensors_are_labels(pipe, labels):
    assert pipe.get_label_ids(labels) == [1, 3]
    assert pipe.get_label_ids(torch.tensor(3)) == [3]


@pytest.mark.parametrize(
    "labels", [{"star"}, {"star": 1}, True, [np.True_], 1.0, b"star", [[1]], torch.ones(2), [None]]
)
def test_what_is_no_label_is_refused(pipe, labels):
    with pytest.raises(
        UserError, match="class_labels takes a name, an id, a wnid, or a list, array or tensor"
    ) as error:
        pipe(labels)
    assert "\n" not in str(error.value)


def test_names_that_are_the_same_tokens_are_named(caplog):
    names = ["a very long name: one", "a very long name: two", "Crane", "crane", "star"]
    LbGenPipeline(**make_components(), class_labels=names)
    warned = [record.getMessage() for record in caplog.records if record.name == "lbgen_hf.pipeline_lbgen"]
    assert len(warned) == 2
    assert "'a very long name: one' and 'a very long name: two' are the same 16 tokens" in warned[0]
    assert "'Crane' and 'crane'" in warned[1]


# Seeds


def test_image_seed_is_the_first_eight_bytes_of_a_sha256():
    # printf '0:1:0' | sha256sum
    assert image_seed(0, 1, 0) == 0x1DEC49FCB20B2578 >> 1
    seeds = {image_seed(base, class_id, index) for base in (0, 1) for class_id in range(50) for index in range(50)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("PNDMScheduler", {}),
        ("DDIMScheduler", {"eta": 0.5}),
        ("DDPMScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("LCMScheduler", {}),
    ],
)
def test_same_seeds_same_images_whatever_the_batch_and_order(fresh_pipe, scheduler, options):
    fresh_pipe.scheduler = getattr(diffusers, scheduler).from_config(fresh_pipe.scheduler.config)
    options = {"num_inference_steps": STEPS, "output_type": "pt", **options}
    whole = fresh_pipe(["tench", "goldfish", "star"], images_per_class=2, seed=5, **options)
    turned = fresh_pipe(["star", "tench", "goldfish"], images_per_class=2, seed=5, **options)
    order = [turned.seeds.index(seed) for seed in whole.seeds]
    assert (whole.images - turned.images[order]).abs().max() < 1e-4
    for image, name, seed in zip(whole.images, whole.class_names, whole.seeds, strict=True):
        alone = fresh_pipe(name, generator=torch.Generator().manual_seed(seed), **options)
        assert (alone.images[0] - image).abs().max() < 1e-4
        assert alone.seeds == [seed]
    assert (whole.images[0] - whole.images[1]).abs().max() > 1e-2


def test_the_trained_models_images_do_not_depend_on_the_batch():
    """Trained weights over all 50 steps of the paper's sampler: what rounding can grow to."""
    pipe = load("lbgen-tiny")
    whole = pipe(["star", "fish", "house"], seed=5, output_type="pt")
    alone = pipe("fish", generator=torch.Generator().manual_seed(whole.seeds[1]), output_type="pt")
    assert (alone.images[0] - whole.images[1]).abs().max() < 1e-4
    assert whole.images.std() > 0.1


def test_a_label_that_comes_again_continues_its_count(pipe):
    apart = pipe(["star", "tench", "star"], seed=0, num_inference_steps=1)
    together = pipe("star", images_per_class=2, seed=0, num_inference_steps=1)
    assert [apart.seeds[0], apart.seeds[2]] == together.seeds


def test_without_a_seed_the_global_generator_decides(pipe):
    torch.manual_seed(11)
    first = pipe("star", num_inference_steps=1)
    second = pipe("star", num_inference_steps=1)
    torch.manual_seed(11)
    again = pipe("star", num_inference_steps=1)
    assert first.seeds == again.seeds != second.seeds


def test_seeds_are_told_only_where_they_give_the_image_again(pipe):
    many = pipe("star", images_per_class=2, generator=torch.Generator().manual_seed(1), num_inference_steps=1)
    given = pipe("star", latents=torch.randn(1, 4, 8, 8), num_inference_steps=1)
    listed = pipe(
        ["star", "tench"], generator=[torch.Generator().manual_seed(s) for s in (8, 9)], num_inference_steps=1
    )
    assert many.seeds is None
    assert given.seeds is None
    assert listed.seeds == [8, 9]
    used = torch.Generator().manual_seed(1)
    assert pipe("star", generator=used, num_inference_steps=1).seeds == [1]
    assert pipe("star", generator=used, num_inference_steps=1).seeds is None
    twice = [torch.Generator().manual_seed(1)] * 2
    assert pipe("star", images_per_class=2, generator=twice, num_inference_steps=1).seeds is None
    with pytest.raises(UserError, match="seed or generator"):
        pipe("star", seed=0, generator=torch.Generator())


def test_noise_is_sampled_in_float32_whatever_the_dtype(pipe):
    def latents(dtype):
        generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return pipe.prepare_latents(2, 4, 64, 64, dtype, torch.device("cpu"), generator)

    expected = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    assert torch.equal(latents(torch.float32), expected)
    assert torch.equal(latents(torch.bfloat16), expected.bfloat16())


# What StableDiffusionPipeline's users do


def test_prompts_instead_of_labels(pipe):
    output = pipe(prompt=["a", "b"], num_images_per_prompt=2, seed=0, num_inference_steps=1)
    assert len(output.images) == 4
    assert output.class_ids is None
    assert output.class_names is None
    assert output.seeds == [image_seed(0, prompt, index) for prompt, index in [("a", 0), ("a", 1), ("b", 0), ("b", 1)]]
    with pytest.raises(UserError, match="nothing to generate"):
        pipe(prompt=[])
    with pytest.raises(UserError, match="prompt must be a text or a list of texts"):
        pipe(prompt=["a", None])
    texts = {"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}
    tuples = {name: tuple(values) for name, values in texts.items()}
    assert torch.equal(sample(pipe, **tuples, seed=0), sample(pipe, **texts, seed=0))


def test_prompts_for_labels_keep_the_labels_seeds(pipe):
    named = pipe("star", seed=0, num_inference_steps=STEPS, output_type="pt")
    told = pipe("star", prompt="star by", seed=0, num_inference_steps=STEPS, output_type="pt")
    assert told.seeds == named.seeds
    assert told.class_ids == [3]
    assert (told.images - named.images).abs().max() > 1e-3
    with pytest.raises(UserError, match="1 prompts for 2 class labels"):
        pipe(["star", "tench"], prompt="one")


def test_prompt_embeds_give_what_their_prompt_gives(pipe):
    embeds, negative = pipe.encode_prompt(["star"], "cpu", 1, True, negative_prompt=["tench"])
    expected = sample(pipe, "star", negative_prompt=["tench"], seed=0)
    sampled = sample(pipe, "star", prompt_embeds=embeds, negative_prompt_embeds=negative, seed=0)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)
    assert (expected - sample(pipe, "star", seed=0)).abs().max() > 1e-3
    unlabelled = pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, seed=0, num_inference_steps=1)
    assert unlabelled.class_ids is None
    assert len(unlabelled.seeds) == 1


def test_output_types_agree(pipe):
    def images(output_type):
        return pipe("star", seed=0, num_inference_steps=STEPS, output_type=output_type).images

    pt = images("pt")
    assert pt.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(images("np"), pt.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.asarray(images("pil")[0]) / 255, pt[0].permute(1, 2, 0).numpy(), atol=0.51 / 255)
    latents = images("latent")
    assert latents.shape == (1, 4, 8, 8)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), pt, rtol=0, atol=1e-5)


def test_a_tuple_holds_the_outputs_fields(pipe):
    images, nsfw, class_ids, class_names, seeds = pipe("star", seed=0, num_inference_steps=1, return_dict=False)
    assert (len(images), nsfw, class_ids, class_names) == (1, None, [3], ["star"])
    assert seeds == [image_seed(0, 3, 0)]


def test_height_and_width(pipe):
    assert sample(pipe, "star", seed=0, height=32, width=96).shape == (1, 3, 32, 96)


def test_callback_sees_every_step_and_can_change_and_stop(pipe):
    steps = []

    def halve(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        steps.append(step)
        return {"latents": tensors["latents"] * 0.5}

    changed = sample(pipe, "star", seed=0, callback_on_step_end=halve)
    assert steps == list(range(STEPS + 1))  # PNDM calls the UNet twice for its second step
    assert (changed - sample(pipe, "star", seed=0)).abs().max() > 1e-3

    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = True
        return tensors

    steps.clear()
    sample(pipe, "star", seed=0, callback_on_step_end=stop)
    assert steps == [0]


def test_offloading_gives_the_same_image(fresh_pipe, sd_folder):
    """On the CPU the hooks move nothing, but they run."""
    expected = sample(fresh_pipe, "star", seed=0)
    fresh_pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(sample(fresh_pipe, "star", seed=0), expected)
    grouped = load(sd_folder)
    grouped.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(sample(grouped, "star", seed=0), expected)


def test_slicing_gives_the_same_image(fresh_pipe):
    expected = sample(fresh_pipe, ["star", "tench"], seed=0)
    fresh_pipe.enable_attention_slicing()
    fresh_pipe.vae.enable_slicing()
    assert (sample(fresh_pipe, ["star", "tench"], seed=0) - expected).abs().max() < 1e-4


def test_ip_adapter_changes_the_image(fresh_pipe):
    torch.manual_seed(0)
    width, image_width, tokens = 32, 6, 4
    processors = list(fresh_pipe.unet.attn_processors)
    layers = {}
    for index, name in enumerate(processors):
        if name.endswith("attn2.processor"):
            channels = 16  # both cross-attention levels of the tiny UNet
            layers[f"{index}.to_k_ip.weight"] = torch.randn(channels, width)
            layers[f"{index}.to_v_ip.weight"] = torch.randn(channels, width)
    projection = {
        "proj.weight": torch.randn(tokens * width, image_width),
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    expected = sample(fresh_pipe, "star", seed=0)
    fresh_pipe.load_ip_adapter(
        {"image_proj": projection, "ip_adapter": layers}, subfolder=None, weight_name="", image_encoder_folder=None
    )
    embeds = [torch.randn(2, 1, image_width)]
    assert (sample(fresh_pipe, "star", seed=0, ip_adapter_image_embeds=embeds) - expected).abs().max() > 1e-3
    fresh_pipe.set_ip_adapter_scale(0.0)
    torch.testing.assert_close(
        sample(fresh_pipe, "star", seed=0, ip_adapter_image_embeds=embeds), expected, rtol=0, atol=1e-5
    )


# Loading and saving


def test_saved_pipelines_come_back_with_their_classes(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.class_labels == CLASS_LABELS
    assert again.class_wnids == CLASS_WNIDS
    assert torch.equal(sample(again, "star", seed=0), sample(pipe, "star", seed=0))


def test_long_class_lists_keep_their_order(tmp_path):
    names = [f"class {i}" for i in range(101)]
    LbGenPipeline(**make_components(), class_labels=names, class_wnids=[None] * 101).save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.class_labels == names
    assert again.get_label_ids(["class 2", "class 100"]) == [2, 100]


def test_a_class_list_given_at_loading_replaces_the_saved_one(sd_folder):
    pipe = load(sd_folder, class_labels=["moon", "sun"])
    assert pipe.class_labels == ["moon", "sun"]
    assert pipe.class_wnids is None
    assert pipe.get_label_ids("sun") == [1]


def test_a_plain_pipeline_becomes_one(pipe, sd_folder):
    plain = StableDiffusionPipeline.from_pretrained(sd_folder)
    ours = LbGenPipeline.from_pipe(plain, class_labels=CLASS_LABELS)
    ours.set_progress_bar_config(disable=True)
    assert torch.equal(sample(ours, "star", seed=0), sample(pipe, "star", seed=0))


def test_lbgen_tiny_is_the_shipped_folder():
    from lbgen_hf.biaslab import MODELS

    for source in ("lbgen-tiny", MODELS / "pipeline"):
        pipe = load(source)
        assert pipe.class_labels == CLASSES
        assert pipe.class_wnids is None
        assert pipe("star", num_inference_steps=1).class_ids == [CLASSES.index("star")]
    assert load("lbgen-tiny", class_labels=["leaf"]).class_labels == ["leaf"]


def test_dtype_is_float32_unless_told_otherwise(pipe, sd_folder, tmp_path):
    half = load(sd_folder, dtype=torch.bfloat16)
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16
    assert sample(half, "star", seed=0).isfinite().all()
    half.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.unet.dtype == again.text_encoder.dtype == again.vae.dtype == torch.float32
    assert (sample(again, "star", seed=0) - sample(pipe, "star", seed=0)).abs().max() < 0.05


def test_a_lora_repo_loads_its_base(pipe, lora_folder, fresh_pipe, library_log):
    adapted = load(lora_folder)
    assert adapted.class_labels == CLASS_LABELS
    config = adapted.unet.peft_config[adapted.get_active_adapters()[0]]
    assert (config.r, config.lora_alpha) == (LORA_RANK, LORA_ALPHA)

    library_log.clear()
    fresh_pipe.load_lora_weights(lora_folder)
    assert not library_log.records
    sampled, base = sample(adapted, "star", seed=0), sample(pipe, "star", seed=0)
    assert torch.equal(sampled, sample(fresh_pipe, "star", seed=0))
    assert (sampled - base).abs().max() > 3e-3
    scaled = [sample(adapted, "star", seed=0, cross_attention_kwargs={"scale": scale}) for scale in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(scaled[0], base, rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled[2], sampled, rtol=0, atol=0)
    assert (scaled[1] - sampled).abs().max() > 3e-4
    adapted.unload_lora_weights()
    torch.testing.assert_close(sample(adapted, "star", seed=0), base, rtol=0, atol=0)


def test_a_lora_of_a_lora_adds_to_it(lora_folder, tmp_path):
    save_lora(tmp_path, make_components(seed=1)["unet"], str(lora_folder))
    chain = load(tmp_path)
    assert set(chain.get_active_adapters()) == {"default_0", "default_1"}
    chain.fuse_lora()
    both = sample(chain, "star", seed=0)
    upper = load(lora_folder)
    upper.fuse_lora()
    upper.unload_lora_weights()
    upper.load_lora_weights(tmp_path)
    torch.testing.assert_close(sample(upper, "star", seed=0), both, rtol=0, atol=1e-4)


@pytest.mark.parametrize("card", [None, "No front matter.\n", "---\nlicense: mit\n---\n"])
def test_a_lora_without_a_base_says_so(lora_folder, tmp_path, card):
    shutil.copy(lora_folder / LORA_FILE, tmp_path)
    if card:
        (tmp_path / "README.md").write_text(card)
    with pytest.raises(UserError, match="does not name its base: write `base_model"):
        LbGenPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("card", [b"---\nbase_model: [\n---\n", b"---\n- base_model\n---\n", b"---\n\xff\n---\n"])
def test_a_lora_whose_readme_is_damaged_is_one_line(lora_folder, tmp_path, card):
    shutil.copy(lora_folder / LORA_FILE, tmp_path)
    (tmp_path / "README.md").write_bytes(card)
    with pytest.raises(UserError, match=r"the README\.md of the LoRA .* cannot be read") as error:
        LbGenPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_lora_of_another_shape_is_refused_and_leaves_the_pipeline_as_it_was(
    fresh_pipe, sd_folder, tmp_path, library_log
):
    save_lora(tmp_path, make_components(width=12)["unet"], str(sd_folder))
    expected = sample(fresh_pipe, "star", seed=0)
    with pytest.raises(UserError, match="does not fit the model") as error:
        fresh_pipe.load_lora_weights(tmp_path)
    assert re.search(r": \d+ of its weights have another shape$", str(error.value))
    assert "\n" not in str(error.value)
    assert not library_log.records
    assert torch.equal(sample(fresh_pipe, "star", seed=0), expected)
    with pytest.raises(UserError, match="does not fit the model"):
        LbGenPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("unet.", "transformer."), ("attn", "attention")])
def test_a_lora_for_other_layers_is_refused(fresh_pipe, lora_folder, tmp_path, old, new):
    weights = load_file(lora_folder / LORA_FILE)
    save_file({name.replace(old, new): weight for name, weight in weights.items()}, tmp_path / LORA_FILE)
    with pytest.raises(UserError, match="does not fit the model"):
        fresh_pipe.load_lora_weights(tmp_path)


def text_lora(layer: int) -> dict[str, torch.Tensor]:
    """A LoRA of one projection of the text encoder, which has two layers."""
    name = f"text_encoder.text_model.encoder.layers.{layer}.self_attn.q_proj"
    torch.manual_seed(0)
    return {f"{name}.lora_A.weight": torch.randn(2, 32), f"{name}.lora_B.weight": torch.randn(32, 2)}


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize(
    ("changed", "unfit"),
    [
        (lambda weights: {name.replace("mid_block", "mid_blocks"): value for name, value in weights.items()}, 16),
        (lambda weights: {name.replace("unet.up", "unet_2.up"): value for name, value in weights.items()}, 32),
        (lambda weights: {name.replace("unet.", "transformer."): value for name, value in weights.items()}, 64),
        (lambda weights: dict(list(weights.items())[1:]), 1),
        (lambda weights: weights | text_lora(9), 2),
        (lambda weights: weights | text_lora(1) | text_lora(9), 2),
    ],
    ids=[
        "lacks modules",
        "lacks a part",
        "lacks all",
        "half a pair",
        "lacks the text layers",
        "lacks a text layer",
    ],
)
def test_a_lora_that_fits_in_part_is_refused(
    fresh_pipe, lora_folder, tmp_path, changed, unfit, with_metadata, library_log, recwarn
):
    with safe_open(lora_folder / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    weights = changed(load_file(lora_folder / LORA_FILE))
    if not with_metadata or any("text" in name for name in weights):  # which it has for the UNet alone
        metadata = None
    save_file(weights, tmp_path / LORA_FILE, metadata)
    expected = sample(fresh_pipe, "star", seed=0)
    with pytest.raises(UserError) as error:
        fresh_pipe.load_lora_weights(tmp_path)
    message = str(error.value)
    assert message.startswith(f"the LoRA {str(tmp_path)!r} does not fit the model {fresh_pipe.name_or_path!r}: ")
    assert message.endswith(f"{unfit} of its {len(weights)} weights have no place in it")
    assert "\n" not in message
    assert not library_log.records
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]
    assert fresh_pipe.get_list_adapters() == {}
    assert torch.equal(sample(fresh_pipe, "star", seed=0), expected)
    fresh_pipe.load_lora_weights(lora_folder)
    assert fresh_pipe.get_active_adapters() == ["default_0"]


def test_loras_of_the_unet_and_of_the_text_encoder_are_numbered_together(fresh_pipe, lora_folder):
    fresh_pipe.load_lora_weights(lora_folder)
    with_unet = sample(fresh_pipe, "star", seed=0)
    fresh_pipe.load_lora_weights(text_lora(1))
    assert fresh_pipe.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_1"]}
    assert not torch.equal(sample(fresh_pipe, "star", seed=0), with_unet)


@pytest.mark.parametrize("source", ["nobody/nothing", "no/such/folder", "/no/such/folder", "no such model"])
def test_a_missing_model_is_one_line(offline, source):
    with pytest.raises(UserError, match="no model") as error:
        LbGenPipeline.from_pretrained(source)
    assert "\n" not in str(error.value)


def test_near_names_of_missing_models_and_loras_are_given(offline, fresh_pipe, sd_folder, lora_folder):
    with pytest.raises(UserError, match="did you mean 'lbgen-tiny'"):
        LbGenPipeline.from_pretrained("lbgen-tny")
    with pytest.raises(UserError, match=re.escape(f"did you mean {str(sd_folder)!r}")):
        LbGenPipeline.from_pretrained(f"{sd_folder}x")
    with pytest.raises(UserError, match=re.escape(f"did you mean {str(lora_folder)!r}")):
        fresh_pipe.load_lora_weights(f"{lora_folder}x")


def test_a_hub_that_cannot_be_reached_is_told_at_once(unreachable, fresh_pipe):
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        LbGenPipeline.from_pretrained("nobody/nothing")
    with pytest.raises(UserError, match="no LoRA 'nobody/nothing'"):
        fresh_pipe.load_lora_weights("nobody/nothing")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_pickled_weights_are_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.rglob("*.bin"))
    with pytest.raises(UserError, match="safetensors") as error:
        LbGenPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="safetensors alone"):
        LbGenPipeline.from_pretrained(tmp_path, use_safetensors=False)


def test_pickled_loras_are_refused(fresh_pipe, lora_folder, tmp_path):
    torch.save(load_file(lora_folder / LORA_FILE), tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(UserError):
        fresh_pipe.load_lora_weights(tmp_path)
    with pytest.raises(UserError, match="safetensors alone"):
        fresh_pipe.load_lora_weights(lora_folder, use_safetensors=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(fresh_pipe, lora_folder, tmp_path, value):
    weights = load_file(lora_folder / LORA_FILE)
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, tmp_path / LORA_FILE)
    with pytest.raises(UserError, match=r"the LoRA .* has weights that are not finite"):
        fresh_pipe.load_lora_weights(tmp_path)
    with pytest.raises(UserError, match=r"the LoRA given has weights that are not finite \(.*q_proj.lora_A"):
        fresh_pipe.load_lora_weights({name: weight * value for name, weight in text_lora(1).items()})
    assert fresh_pipe.get_list_adapters() == {}
    fresh_pipe.unet.conv_out.bias.data[0] = value
    fresh_pipe.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(UserError, match=r"the UNet of .* not finite \(conv_out.bias\)"):
        LbGenPipeline.from_pretrained(tmp_path / "pipeline")


def test_an_adapter_name_that_is_taken_is_told(fresh_pipe, lora_folder):
    fresh_pipe.load_lora_weights(lora_folder, adapter_name="first")
    with pytest.raises(UserError, match="the adapter name 'first' is taken"):
        fresh_pipe.load_lora_weights(lora_folder, adapter_name="first")
    fresh_pipe.load_lora_weights(lora_folder, adapter_name="second")


def test_a_variant_that_is_missing_is_one_line(sd_folder, fresh_pipe, tmp_path):
    with pytest.raises(UserError, match="variant=fp16") as error:
        LbGenPipeline.from_pretrained(sd_folder, variant="fp16")
    assert "\n" not in str(error.value)
    fresh_pipe.save_pretrained(tmp_path, variant="fp16")
    assert load(tmp_path, variant="fp16").class_labels == CLASS_LABELS


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(UserError, match="does not hold the whole model"):
        LbGenPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("network", ["offline", "unreachable"])
def test_a_lora_in_the_hubs_cache_needs_no_network(network, request, fresh_pipe, lora_folder, tmp_path):
    request.getfixturevalue(network)
    repo = tmp_path / "models--user--lora"
    shutil.copytree(lora_folder, repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    fresh_pipe.load_lora_weights("user/lora", cache_dir=tmp_path)
    assert fresh_pipe.get_active_adapters()
    with pytest.raises(UserError, match=r"no LoRA .user/other.: it is not a folder here"):
        fresh_pipe.load_lora_weights("user/other", cache_dir=tmp_path, local_files_only=True)


def test_a_missing_lora_is_one_line(offline, fresh_pipe, tmp_path):
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as error:
            fresh_pipe.load_lora_weights(source)
        assert "\n" not in str(error.value)


@pytest.fixture
def custom_pipeline(tmp_path, monkeypatch):
    """The file as a Hub repo's pipeline.py, on a machine where lbgen_hf is not installed."""
    shutil.copy(pipeline_lbgen.__file__, tmp_path / "pipeline.py")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "lbgen_hf"]:
        monkeypatch.setitem(sys.modules, name, None)
    return str(tmp_path)


def test_the_file_alone_is_a_custom_pipeline(pipe, sd_folder, custom_pipeline, tmp_path):
    expected = sample(pipe, "star", seed=0)
    loaded = DiffusionPipeline.from_pretrained(sd_folder, custom_pipeline=custom_pipeline, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded).__name__ == "LbGenPipeline"
    assert type(loaded) is not LbGenPipeline
    assert torch.equal(sample(loaded, "star", seed=0), expected)
    with pytest.raises(ValueError, match="did you mean 'star'"):
        loaded("starr")
    with pytest.raises(ValueError, match="pip install lbgen_hf"):
        type(loaded).from_pretrained("lbgen-tiny")


def test_a_custom_pipeline_without_a_class_list_takes_any_name(custom_pipeline, tmp_path):
    StableDiffusionPipeline(**make_components()).save_pretrained(tmp_path / "plain")
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path / "plain", custom_pipeline=custom_pipeline, trust_remote_code=True
    )
    loaded.set_progress_bar_config(disable=True)
    output = loaded(["okapi", "quagga"], seed=0, num_inference_steps=1)
    assert output.class_names == ["okapi", "quagga"]
    assert output.class_ids is None
    assert output.seeds == [image_seed(0, "okapi", 0), image_seed(0, "quagga", 0)]
    for labels in (3, []):
        with pytest.raises(ValueError, match="class"):
            loaded(labels)


def test_a_single_file_loads(pipe, sd_folder, tmp_path):
    """The original Stable Diffusion layout: `model.diffusion_model.` and `cond_stage_model.transformer.` keys."""
    weights = {f"model.diffusion_model.{_ldm_key(k)}": v for k, v in pipe.unet.state_dict().items()}
    text = {
        f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": v
        for k, v in pipe.text_encoder.state_dict().items()
    }
    save_file(weights | text, tmp_path / "model.safetensors")
    single = LbGenPipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(sd_folder), vae=pipe.vae, local_files_only=True
    )
    single.set_progress_bar_config(disable=True)
    assert single.class_labels == CLASS_LABELS
    assert torch.equal(sample(single, "star", seed=0), sample(pipe, "star", seed=0))


_LDM_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _ldm_key(key: str) -> str:
    """The name, in the original layout, of a weight of the tiny UNet."""
    block = max((block for block in _LDM_BLOCKS if key.startswith(f"{block}.")), key=len)
    rest = key.removeprefix(f"{block}.")
    if "resnets" in block:
        layer, _, kind = rest.rpartition(".")
        rest = f"{_LDM_RESNET[layer]}.{kind}"
    return f"{_LDM_BLOCKS[block]}.{rest}"
