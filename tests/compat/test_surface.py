"""What code in the wild touches of the removed pipelines besides calling them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from kdrt.compat import StableDiffusionKDiffusionPipeline, StableDiffusionXLKDiffusionPipeline
from kdrt.compat.arguments import ARGUMENTS
from kdrt.compat.sources import Wanted
from kdrt.errors import InvalidRequestError, KdrtError
from tests.support.checkpoints import SCHEDULER

CLASSES: dict[str, Any] = {
    "sd": StableDiffusionKDiffusionPipeline,
    "sdxl": StableDiffusionXLKDiffusionPipeline,
}
SIZE = {"height": 24, "width": 16, "num_inference_steps": 2, "output_type": "latent"}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# What ``inspect`` and the documentation of diffusers 0.36 gave.
FROM_PRETRAINED = """torch_dtype custom_pipeline custom_revision force_download cache_dir proxies
    output_loading_info local_files_only token revision mirror device_map max_memory offload_folder
    offload_state_dict low_cpu_mem_usage use_safetensors use_onnx variant dduf_file from_flax
    provider sess_options provider_options load_connected_pipeline quantization_config
    vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet scheduler safety_checker
    feature_extractor image_encoder requires_safety_checker force_zeros_for_empty_prompt
    add_watermarker subfolder resume_download use_auth_token trust_remote_code"""
FROM_SINGLE_FILE = """torch_dtype force_download cache_dir proxies local_files_only token revision
    original_config original_config_file config disable_mmap scaling_factor use_safetensors
    prediction_type scheduler_type load_safety_checker image_size num_in_channels extract_ema
    upcast_attention pipeline_class vae text_encoder tokenizer scheduler device_map"""
METHODS = """enable_attention_slicing disable_attention_slicing set_attention_slice
    enable_model_cpu_offload enable_sequential_cpu_offload enable_group_offload
    maybe_free_model_hooks remove_all_hooks reset_device_map disable_freeu
    enable_xformers_memory_efficient_attention disable_xformers_memory_efficient_attention
    set_use_memory_efficient_attention_xformers enable_vae_slicing disable_vae_slicing
    enable_vae_tiling disable_vae_tiling upcast_vae fuse_qkv_projections set_progress_bar_config
    enable_lora_hotswap set_lora_device unload_lora_weights unload_ip_adapter disable_lora
    enable_lora"""


ABSENT = """register_modules register_to_config register_for_auto_class from_config load_config
    get_config_dict extract_init_dict save_config to_json_string to_json_file download push_to_hub
    lora_state_dict load_lora_into_unet load_lora_into_text_encoder pack_weights
    write_lora_layers"""


def defaults(method: Any) -> set[str]:
    return set(inspect.signature(method).parameters)


@pytest.mark.parametrize("method", ["from_pretrained", "from_single_file"])
def test_every_loading_argument_counts_or_is_answered(sd: Any, tmp_path: Path, method: str) -> None:
    """With nonsense for a value each is accepted or refused in a sentence, whatever it is."""
    load = getattr(CLASSES["sd"], method)
    known = (FROM_PRETRAINED if method == "from_pretrained" else FROM_SINGLE_FILE).split()
    assert set(known) <= defaults(load) | set(ARGUMENTS)
    for name in known:
        for value in (object(), "nonsense", -1, True, [1]):
            with pytest.raises(KdrtError) as refused:
                load(tmp_path / "missing.safetensors", **{name: value})
            assert "<object" not in str(refused.value) or name in str(refused.value), name
    with pytest.raises(InvalidRequestError, match="no argument 'nonsense'"):
        load(sd.bundle.path, nonsense=1)


def test_arguments_that_say_what_is_so_anyway(sd: Any, sdxl: Any) -> None:
    nothing = dict.fromkeys(set(FROM_PRETRAINED.split()) - {"trust_remote_code"})
    switches = {"add_watermarker": False, "output_loading_info": False, "low_cpu_mem_usage": False}
    usual = {"torch_dtype": "auto", "variant": "fp16", "device_map": "balanced", "subfolder": ""}
    pipe = CLASSES["sd"].from_pretrained(sd.bundle.path, **(nothing | switches | usual))
    assert pipe.safety_checker is None
    for other in (torch.float32, "float32", {"unet": torch.float32, "vae": "torch.float32"}):
        CLASSES["sd"].from_pretrained(sd.bundle.path, torch_dtype=other, device_map="cpu")
    zeros = CLASSES["sdxl"].from_pretrained(sdxl.bundle.path)
    encoded = CLASSES["sdxl"].from_pretrained(sdxl.bundle.path, force_zeros_for_empty_prompt=False)
    assert not zeros.encode_prompt("blue")[1].any()
    expected = zeros.encode_prompt("blue", negative_prompt="")[1]
    assert torch.equal(encoded.encode_prompt("blue")[1], expected)
    assert encoded.config.force_zeros_for_empty_prompt is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vae": object()}, "--vae"),
        ({"unet": object()}, "save_pretrained"),
        ({"quantization_config": {}}, "--weights int8"),
        ({"proxies": {"http": "x"}}, "HTTPS_PROXY"),
        ({"add_watermarker": True}, "watermark"),
        ({"torch_dtype": "float8"}, "torch_dtype must be"),
        ({"torch_dtype": {"unet": torch.float16, "text_encoder": torch.float32}}, "VAE only"),
        ({"torch_dtype": torch.int8}, "torch_dtype must be one of"),
        ({"scheduler": "euler"}, "scheduler object of diffusers"),
        ({"subfolder": "nowhere"}, "no folder 'nowhere'"),
        ({"subfolder": "../"}, "no folder"),
        ({"device_map": "mars"}, "'cpu' and 'cuda'"),
        ({"prediction_type": "v_prediction"}, "--prediction-type v_prediction"),
        ({"force_zeros_for_empty_prompt": "yes"}, "True or False"),
        ({"config": "folder"}, "from_single_file"),
    ],
)
def test_what_is_refused_says_what_to_do(sd: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        CLASSES["sd"].from_pretrained(sd.bundle.path, **options)


def test_a_checkpoint_file_is_exported_as_it_is_asked_for(
    sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Wanted] = []

    def find(_source: object, wanted: Wanted) -> Any:
        asked.append(wanted)
        return sd.bundle

    monkeypatch.setattr("kdrt.compat.loading.find_bundle", find)
    file = tmp_path / "mine.safetensors"
    file.touch()
    CLASSES["sd"].from_single_file(
        file,
        prediction_type="v_prediction",
        scheduler_type="euler",
        load_safety_checker=False,
        torch_dtype={"unet": torch.float16, "vae": torch.float32},
        original_config=None,
    )
    assert asked[0].prediction_type == "v_prediction"
    assert (asked[0].precision, asked[0].vae_precision) == ("fp16", "fp32")
    for options in (
        {"original_config": "v1.yaml"},
        {"load_safety_checker": True},
        {"scheduler_type": "nonsense"},
        {"prediction_type": "sample"},
        {"config": tmp_path / "nowhere"},
        {"subfolder": "x"},
    ):
        with pytest.raises(InvalidRequestError, match=next(iter(options))):
            CLASSES["sd"].from_single_file(file, **options)
    assert len({json.dumps(Wanted(prediction_type=p).settings()) for p in (None, "epsilon")}) == 2


def test_switches_and_methods(tiny: Any) -> None:
    pipe = tiny.pipe()
    before = pipe("blue", generator=seeded(), **SIZE).images
    for name in METHODS.split():
        assert getattr(pipe, name)() is None
    assert torch.equal(pipe("blue", generator=seeded(), **SIZE).images, before)
    for part in (pipe.unet, pipe.vae):
        assert part.to(dtype=torch.float32, memory_format=torch.channels_last) is part
        assert part.eval().requires_grad_(False) is part
        part.enable_xformers_memory_efficient_attention()
        part.set_attn_processor(type("AttnProcessor2_0", (), {})())
        for wrong in (
            lambda part=part: part.to(torch.float16),
            lambda part=part: part.set_attn_processor(object()),
            lambda part=part: part.save_pretrained("x"),
        ):
            with pytest.raises(InvalidRequestError):
                wrong()
    with pytest.raises(InvalidRequestError, match=r"pipe\.pipeline\.stream"):
        pipe.unet(torch.zeros(1))
    for name in ABSENT.split():
        for owner in (pipe, type(pipe)):
            with pytest.raises(InvalidRequestError):
                getattr(owner, name)("anything", option=1)


@pytest.mark.parametrize(
    "arguments",
    [(-1,), ("mars",), ("meta",), ([],), ("cpu", "cpu"), (torch.float16,), (torch.device("mps"),)],
)
def test_places_that_are_none(sd: Any, arguments: tuple[Any, ...]) -> None:
    pipe = sd.pipe()
    with pytest.raises(InvalidRequestError):
        pipe.to(*arguments)
    assert pipe.to(torch.device("cpu"), torch.float32, silence_dtype_warnings=True) is pipe


def test_components_and_config(tiny: Any) -> None:
    pipe = CLASSES[tiny.family].from_pretrained(tiny.bundle.path)
    loaded = set(pipe.pipeline.engines.maps[-1]._loaded)
    components = pipe.components
    assert set(pipe.pipeline.engines.maps[-1]._loaded) == loaded
    parameters = {
        "sd": "vae text_encoder tokenizer unet scheduler safety_checker feature_extractor",
        "sdxl": "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet scheduler",
    }
    assert set(components) == set(parameters[tiny.family].split())
    config = pipe.config
    assert config._class_name == type(pipe).__name__
    assert config["unet"] == ("diffusers", "UNet2DConditionModel")
    assert pipe.name_or_path == config._name_or_path == str(tiny.bundle.path)
    assert config.get("nothing") is None
    assert not hasattr(pipe.unet.config, "nothing")
    assert dict(pipe.unet.config)["in_channels"] == pipe.unet.config.in_channels == 4
    written = json.loads((tiny.checkpoint / "unet" / "config.json").read_text())
    assert {k: v for k, v in pipe.unet.config.items() if k in written and k[0] != "_"} == {
        k: v for k, v in written.items() if k[0] != "_"
    }
    with pytest.raises(InvalidRequestError, match="export it again"):
        pipe.unet.config.sample_size = 96
    with pytest.raises(InvalidRequestError, match="from_pipe"):
        CLASSES[tiny.family](**components)
    assert pipe.watermark is None


def test_networks_cannot_be_replaced_and_schedulers_can(sd: Any) -> None:
    pipe = sd.pipe()
    for name in ("unet", "vae", "text_encoder", "tokenizer", "image_encoder"):
        with pytest.raises(
            InvalidRequestError, match=f"{name} cannot be replaced.*save_pretrained"
        ):
            setattr(pipe, name, torch.nn.Identity())
        setattr(pipe, name, getattr(pipe, name))
    with pytest.raises(InvalidRequestError, match="unet cannot be replaced"):
        pipe.unet = torch.compile(pipe.unet)
    pipe.text_encoder = pipe.tokenizer = None
    assert pipe.text_encoder is not None
    for wrong in (None, PNDMScheduler(), object()):
        with pytest.raises(InvalidRequestError, match="set_timesteps and sigmas"):
            pipe.scheduler = wrong
    pipe.safety_checker = None
    assert pipe.components["safety_checker"] is None


def test_the_sigmas_of_another_scheduler_are_the_default_grid(sd: Any) -> None:
    pipe = sd.pipe()
    keys = {k: v for k, v in SCHEDULER.items() if k not in ("_class_name", "skip_prk_steps")}
    other = EulerDiscreteScheduler(**keys, timestep_spacing="trailing")
    expected = sd.pipe(timestep_spacing="trailing")
    pipe.scheduler = other
    out = pipe("blue", generator=seeded(), **SIZE).images
    assert torch.equal(out, expected("blue", generator=seeded(), **SIZE).images)
    # An object of diffusers given for loading counts as its file would.
    given = CLASSES["sd"].from_pretrained(sd.bundle.path, scheduler=other)
    given.scheduler.set_timesteps(2)
    assert torch.equal(given.scheduler.sigmas, expected.scheduler.sigmas)
    assert given.scheduler.config.timestep_spacing == "trailing"
    plain = CLASSES["sd"].from_pretrained(sd.bundle.path, scheduler=PNDMScheduler(**keys))
    assert plain.scheduler.config.timestep_spacing == "linspace"
    taken = LMSDiscreteScheduler.from_config(given.scheduler.config)
    taken.set_timesteps(2)
    assert torch.equal(taken.sigmas, given.scheduler.sigmas)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("karras", [False, True])
def test_the_scheduler_shows_what_lms_shows(sd: Any, spacing: str, karras: bool) -> None:
    keys = {k: v for k, v in SCHEDULER.items() if k not in ("_class_name", "skip_prk_steps")}
    facts = {"timestep_spacing": spacing, "steps_offset": 1, "use_karras_sigmas": karras}
    theirs = LMSDiscreteScheduler(**keys, **facts)
    pipe = sd.pipe(**facts)
    for steps in (1000, 7, 2):
        theirs.set_timesteps(steps)
        pipe.scheduler.set_timesteps(steps)
        assert torch.equal(pipe.scheduler.sigmas, theirs.sigmas)
        torch.testing.assert_close(pipe.scheduler.timesteps, theirs.timesteps, rtol=0, atol=2e-3)
        assert pipe.scheduler.init_noise_sigma == theirs.init_noise_sigma
    pipe.scheduler.set_timesteps(9)
    pipe("blue", **SIZE)
    assert torch.equal(pipe.scheduler.sigmas, theirs.sigmas)
    assert pipe.scheduler.num_inference_steps == len(pipe.scheduler.timesteps) == 2


def test_after_a_karras_run_the_scheduler_shows_its_grid(sd: Any) -> None:
    pipe = sd.pipe()
    pipe("blue", use_karras_sigmas=True, **SIZE)
    first, last = pipe.k_diffusion_model.sigmas[-1], pipe.k_diffusion_model.sigmas[0]
    torch.testing.assert_close(pipe.scheduler.sigmas, torch.stack([first, last, 0 * last]))
    assert pipe.scheduler.timesteps[0].round() == 999
    with pytest.raises(InvalidRequestError, match="num_inference_steps"):
        pipe.scheduler.set_timesteps(0)


def test_the_vae_by_itself(tiny: Any) -> None:
    pipe = CLASSES[tiny.family].from_pretrained(tiny.bundle.path)
    vae = pipe.vae
    assert vae.use_slicing
    written = json.loads((tiny.checkpoint / "vae" / "config.json").read_text())
    assert vae.config.scaling_factor == written["scaling_factor"] != 1
    vae.enable_tiling()
    assert pipe.vae.use_tiling
    vae.disable_tiling()
    vae.disable_slicing()
    assert [pipe.vae.use_slicing, pipe.vae.use_tiling] == [False, False]
    theirs = AutoencoderKL.from_pretrained(tiny.checkpoint / "vae")
    z = torch.randn(2, 4, 6, 8, generator=seeded())
    with torch.no_grad():
        expected = theirs.decode(z).sample
        mean = theirs.encode(expected).latent_dist.mean
    pixels = vae.decode(z, return_dict=False)[0]
    torch.testing.assert_close(pixels, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(vae.decode(z).sample, pixels)
    encoded = vae.encode(expected).latent_dist
    assert encoded.sample() is encoded.mode()
    torch.testing.assert_close(encoded.mode(), mean, rtol=1e-4, atol=1e-4)
    assert (vae.dtype, vae.device.type) == (torch.float32, "cpu")
    for wrong in ("x", torch.zeros(1, 5, 4, 4), torch.zeros(4, 4, 4)):
        with pytest.raises(InvalidRequestError, match="latents must be"):
            vae.decode(wrong)
        with pytest.raises(InvalidRequestError, match="pixels must be"):
            vae.encode(wrong)


def test_the_image_processor_is_that_of_diffusers(sd: Any) -> None:
    ours = sd.pipe().image_processor
    theirs = VaeImageProcessor(vae_scale_factor=ours.config.vae_scale_factor)
    generator = seeded()
    pixels = torch.randn(2, 3, 6, 8, generator=generator)
    for kind in ("pt", "np"):
        for flags in (None, [True, False]):
            out, expected = (p.postprocess(pixels, kind, flags) for p in (ours, theirs))
            assert np.array_equal(out, expected)
    pairs = zip(ours.postprocess(pixels), theirs.postprocess(pixels), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    unit = torch.rand(1, 3, 7, 9, generator=generator)
    image = Image.fromarray((unit[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    array = unit.permute(0, 2, 3, 1).numpy()
    for value in (image, [image, image], array, list(array), unit, list(unit), unit * 2 - 1):
        for options in ({}, {"height": 12, "width": 4}):
            expected = theirs.preprocess(value, **options)
            assert torch.equal(ours.preprocess(value, **options), expected)
    latents = torch.zeros(1, 4, 5, 5)
    assert ours.preprocess(latents) is latents or torch.equal(ours.preprocess(latents), latents)
    for no_images in (5, [], [image, unit], "x"):
        with pytest.raises(InvalidRequestError):
            ours.preprocess(no_images)
    for no_tensor in ("x", array, unit[0]):
        with pytest.raises(InvalidRequestError):
            ours.postprocess(no_tensor)


def test_the_progress_bar_is_used_as_tqdms(sd: Any) -> None:
    pipe = sd.pipe()
    assert list(pipe.progress_bar([3, 4])) == [3, 4]
    with pipe.progress_bar(total=2) as bar:
        bar.update()
        bar.set_postfix(loss=1)
    assert (bar.n, bar.total) == (1, 2)
    with pytest.raises(InvalidRequestError, match="iterable"):
        pipe.progress_bar()


def test_from_pipe_shares_the_networks(tiny: Any) -> None:
    pipe = tiny.pipe()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    other = type(pipe).from_pipe(pipe, torch_dtype=torch.float32, safety_checker=None)
    other.set_progress_bar_config(disable=True)
    assert other.pipeline is pipe.pipeline
    results = [p("blue", generator=seeded(), **SIZE).images for p in (pipe, other)]
    assert torch.equal(*results)
    other.set_scheduler("euler")
    assert pipe.sampler == "dpmpp_2m"
    for options in ({"torch_dtype": torch.float16}, {"scheduler": pipe.scheduler}, {"unet": 1}):
        with pytest.raises(InvalidRequestError):
            type(pipe).from_pipe(pipe, **options)
    with pytest.raises(InvalidRequestError, match="from_pretrained"):
        type(pipe).from_pipe(object())


def test_a_saved_pipeline_opens_again(tiny: Any, tmp_path: Path) -> None:
    kind = CLASSES[tiny.family]
    pipe = kind.from_pretrained(tiny.bundle.path, threads=1)
    pipe.save_pretrained(tmp_path / "saved", safe_serialization=True)
    again = kind.from_pretrained(tmp_path / "saved", threads=1)
    results = [p("blue", generator=seeded(), **SIZE).images for p in (pipe, again)]
    assert torch.equal(*results)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for target in (tmp_path / "mine", tmp_path / "saved", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(InvalidRequestError, match="exists already"):
            pipe.save_pretrained(target)
    assert [*(tmp_path / "mine").iterdir()] == [tmp_path / "mine" / "letter.txt"]
    with pytest.raises(InvalidRequestError, match="hf upload"):
        pipe.save_pretrained(tmp_path / "other", push_to_hub=True)


def test_what_to_export_can_be_opened(sd: Any) -> None:
    pipe = CLASSES["sd"].from_pretrained(sd.bundle.path)
    pipe.exported_from = "/models/mine"
    with pytest.raises(InvalidRequestError) as refused:
        pipe.unfuse_qkv_projections()
    command = "kdrt export /models/mine --name sd-2 --precision fp32 --variant unfused-qkv`"
    assert command.replace("sd-2", f"{sd.bundle.manifest.name}-2") in str(refused.value)
    assert "from_pretrained(" in str(refused.value)


@pytest.mark.parametrize("length", [3, 6, 15])
@pytest.mark.parametrize("exact", [False, True])
def test_short_embeddings_meet_a_negative_prompt_as_short(
    tiny: Any, length: int, exact: bool
) -> None:
    """Tokenised to that length, as the originals did."""
    pipe = tiny.pipe(exact=exact)
    prompt, negative = "a small red circle", "a large green square and 2 yellow stars"
    parts = pipe.encode_prompt(prompt, *((None, 1, True) if tiny.family == "sd" else ()))
    short = {"prompt_embeds": parts[0][:, :length], "negative_prompt": negative}
    if tiny.family == "sdxl":
        short["pooled_prompt_embeds"] = parts[2]
    arguments = (None, None, 1, True) if tiny.family == "sd" else (None,)
    encoded = pipe.encode_prompt(*arguments, **short)[1]
    expected = []
    for encoder, tokenizer in zip(tiny.networks.encoders, tiny.networks.tokenizers, strict=True):
        ids = tokenizer(
            [negative],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            out = encoder(ids, output_hidden_states=True)
        expected.append(out[0] if tiny.family == "sd" else out.hidden_states[-2])
    assert torch.equal(encoded, torch.cat(expected, dim=-1))
    assert pipe(**short, **SIZE).images.isfinite().all()


WRONG: dict[str, tuple[Any, ...]] = {
    "prompt": (5, [], [1], ("a",), b"a", {"a": 1}, "\udcc3", None),
    "negative_prompt": (5, [1], ["a", "b"], b"a"),
    "num_images_per_prompt": (0, -1, "2", 1.5, True, None),
    "num_inference_steps": (0, "2", 1.5, 10**9, 10**30),
    "height": ("512", -8, 20, 10**9, True),
    "guidance_scale": ("7", None, float("nan"), -1),
    "generator": (5, [5], [], "x"),
    "latents": (5, "x", torch.zeros(2, 4, 12, 8), torch.full((1, 4, 12, 8), float("nan"))),
    "negative_prompt_embeds": ("x", torch.zeros(16, 32), torch.zeros(1, 0, 32)),
    "callback": (5, "x"),
    "callback_steps": (0, "2", 1.5),
    "output_type": ("jpg", None, 5),
    "noise_sampler_seed": (-1, 1.5, "a", True, [-1], [True], [], [1, 2], 2**64),
    "clip_skip": (-1, "1", 99),
    "ip_adapter_image": (5, "x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_sentence(tiny: Any, name: str) -> None:
    pipe = tiny.pipe()
    for value in WRONG[name]:
        with pytest.raises(InvalidRequestError) as refused:
            pipe(**({"prompt": "a"} | SIZE | {name: value}))
        assert len(str(refused.value)) < 400


def test_wrong_embeddings_are_one_sentence(tiny: Any) -> None:
    pipe, width = tiny.pipe(), 32 if tiny.family == "sd" else 64
    pooled = {} if tiny.family == "sd" else {"pooled_prompt_embeds": torch.zeros(1, 32)}
    for wrong in (
        *("x", [torch.zeros(1, 16, width)], torch.zeros(16, width), torch.zeros(1, 16, 5)),
        *(torch.zeros(1, 16, width).long(), torch.full((1, 16, width), float("inf"))),
        *(torch.zeros(0, 16, width), torch.zeros(1, 0, width)),
    ):
        with pytest.raises(InvalidRequestError, match="prompt_embeds must be"):
            pipe(prompt_embeds=wrong, **pooled, **SIZE)
    if tiny.family == "sdxl":
        for wrong in ("x", torch.zeros(1, 5), torch.zeros(2, 32)):
            with pytest.raises(InvalidRequestError, match="pooled_prompt_embeds"):
                pipe(prompt_embeds=torch.zeros(1, 16, 64), pooled_prompt_embeds=wrong, **SIZE)
            with pytest.raises(InvalidRequestError, match="pooled_prompt_embeds"):
                pipe("a", pooled_prompt_embeds=wrong, **SIZE)


@pytest.mark.parametrize(
    "path", [5, None, "", b"abc", "~nouser/x", "a\0b", "x" * 5000, "a/" * 3000, "/nowhere/x", True]
)
def test_paths_that_are_none(sd: Any, path: Any) -> None:
    pipe = sd.pipe()
    for use in (type(pipe).from_pretrained, type(pipe).from_single_file):
        with pytest.raises(KdrtError):
            use(path)
    if path != "/nowhere/x":
        with pytest.raises(KdrtError):
            pipe.save_pretrained(path)
    with pytest.raises(InvalidRequestError, match="revision must be"):
        type(pipe).from_pretrained(sd.bundle.path, revision=5)
