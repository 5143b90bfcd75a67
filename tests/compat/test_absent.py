"""What code in the wild asks of diffusers' objects: it works, or a sentence says what there is."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from kdrt.errors import InvalidRequestError, OutputError

SIZE = {"height": 24, "width": 16, "num_inference_steps": 2, "output_type": "latent"}

ABSENT = """unet.parameters() unet.state_dict() unet.attn_processors unet.down_blocks
    unet.load_attn_procs('x') unet.fuse_qkv_projections() unet.enable_freeu() unet.half()
    unet.train() unet.forward vae.decoder vae.post_quant_conv vae.half() vae.bfloat16() vae.cuda()
    text_encoder.text_model text_encoder(torch.zeros(1,16)) text_encoder.get_input_embeddings()
    text_encoder.resize_token_embeddings(9) text_encoder.half() tokenizer.add_tokens(['x'])
    scheduler.betas scheduler.step(0,0,0) scheduler.add_noise(0,0,0) scheduler.from_config({})
    scheduler.__class__.from_config({}) scheduler.config.nothing config.nothing cuda() half()
    parameters() nothing lora_scale from_ckpt('x') image_processor.blur(0)
    k_diffusion_model.inner_model k_diffusion_model.get_sigmas(3)"""


@pytest.mark.parametrize("code", ABSENT.split())
def test_what_is_absent_says_so(tiny: Any, code: str) -> None:
    pipe = tiny.pipe(onnx=True)
    with pytest.raises(InvalidRequestError) as refused:
        eval(f"pipe.{code}", {"pipe": pipe, "torch": torch})
    assert 20 < len(str(refused.value)) < 400


def test_absent_attributes_are_still_told_apart(tiny: Any) -> None:
    pipe = tiny.pipe(onnx=True)
    assert not hasattr(pipe, "nothing")
    assert getattr(pipe.unet, "parameters", None) is None
    assert hasattr(pipe, "tokenizer_2") == (tiny.family == "sdxl")
    # As ConfigMixin has it, and as old code asks.
    assert pipe.unet.in_channels == pipe.unet.config.in_channels == 4
    with pytest.raises(InvalidRequestError, match="use_karras_sigmas"):
        pipe.scheduler.use_karras_sigmas = True
    with pytest.raises(InvalidRequestError, match="cannot be set"):
        pipe.device = "cuda"
    assert copy.copy(pipe).pipeline is pipe.pipeline
    for use in (copy.deepcopy, pickle.dumps):
        with pytest.raises(InvalidRequestError, match=r"call kdrt\.load there"):
            use(pipe)


def test_what_networks_are_asked_for_in_passing(tiny: Any) -> None:
    pipe = tiny.pipe(onnx=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert part.float().cpu().eval().train(False).requires_grad_(False).to("cpu") is part
        assert part.dtype == torch.float32
        part.compile()
        torch.compile(part)
    assert pipe.text_encoder.config.hidden_size == 32
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    pipe.text_encoder = pipe.tokenizer = None
    pipe.text_encoder, pipe.tokenizer = encoder, tokenizer
    with pytest.raises(InvalidRequestError, match="text_encoder cannot be replaced"):
        pipe.text_encoder = pipe.vae


@pytest.mark.parametrize("argument", ["callback_on_step_end", "image", "seed", "sigmas", "nothing"])
def test_arguments_that_a_call_does_not_have(tiny: Any, argument: str) -> None:
    pipe = tiny.pipe()
    with pytest.raises(InvalidRequestError, match=f"no argument '{argument}'"):
        pipe("a", **SIZE, **{argument: 1})
    pipe("a", **SIZE, cross_attention_kwargs=None)
    pipe("a", **SIZE, cross_attention_kwargs={})


def test_the_tokenizer_is_called_as_it_was(tiny: Any) -> None:
    theirs = CLIPTokenizer.from_pretrained(tiny.checkpoint / "tokenizer")
    ours = tiny.pipe().tokenizer
    assert ours.model_max_length == theirs.model_max_length == 16
    assert len(ours) == len(theirs) == ours.vocab_size
    texts = ["a red circle", "blue", "a large green square and 2 yellow stars on a small red one"]
    for text in (texts[0], texts):
        for options in (
            {},
            {"truncation": True},
            {"padding": "max_length", "truncation": True, "return_tensors": "pt"},
            {"padding": True, "max_length": 5, "truncation": True, "return_tensors": "np"},
            {"add_special_tokens": False, "truncation": True, "max_length": 3},
        ):
            mine, other = ours(text, **options), theirs(text, **options)
            for key in ("input_ids", "attention_mask"):
                expected = other[key]
                assert type(mine[key]) is type(expected)
                assert (
                    torch.equal(*(torch.as_tensor(x) for x in (mine[key], expected)))
                    if ("return_tensors" in options)
                    else mine[key] == expected
                )
    assert ours.tokenize(texts[0]) == theirs.tokenize(texts[0])
    assert ours.encode("blue") == theirs.encode("blue")
    wrong: tuple[Callable[[], Any], ...] = (
        lambda: ours(5),
        lambda: ours(texts, return_tensors="pt"),
        lambda: ours("a", max_length=0),
        lambda: ours.decode("x"),
        lambda: ours.decode([1.5]),
        lambda: ours.tokenize(["a", "b"]),
    )
    for each in wrong:
        with pytest.raises(InvalidRequestError):
            each()


def test_a_safety_checker_of_ones_own(sd: Any) -> None:
    pipe = sd.pipe(onnx=True)
    shown = SIZE | {"output_type": "np"}
    for checker, flagged in (
        (lambda images, clip_input: (images, False), False),
        (lambda images, **_: (images, [True] * len(images)), True),
        (lambda images: [image.width == 16 for image in images], True),
        (lambda clip_input, images: (images, [False for _ in images]), False),
        (lambda images, clip_input: (images, None), False),
        (lambda images: [np.True_], True),
        (lambda images: np.True_, True),
    ):
        pipe.safety_checker = checker
        out = pipe("a", **shown)
        assert out.nsfw_content_detected == [flagged]
        assert bool(out.images.any()) is not flagged
        pipe.pipeline._release_vae()
    for wrong in (5, "off", torch.nn.Identity()):
        with pytest.raises(InvalidRequestError, match=r"pipe\.safety_checker takes None"):
            pipe.safety_checker = wrong
    answers: list[Any] = ["no", "n", None, [None], [0], [[]], np.zeros(1)]
    for answer in answers:
        pipe.safety_checker = lambda images, answer=answer: answer
        with pytest.raises(InvalidRequestError, match="must say of each"):
            pipe("a", **shown)
    pipe.safety_checker = lambda images, clip_input: [True, False]
    assert pipe(["a", "b"], **shown).nsfw_content_detected == [True, False]
    pipe.safety_checker = None
    assert pipe("a", **shown).nsfw_content_detected is None


def test_a_sampler_may_be_assigned(sd: Any) -> None:
    pipe = sd.pipe()

    def sample_heun() -> None: ...

    sample_heun.__module__ = "k_diffusion.sampling"
    for given in ("sample_heun", sample_heun):
        pipe.set_scheduler("euler")
        pipe.sampler = given
        assert pipe.sampler == "heun"
    with pytest.raises(InvalidRequestError, match="Please choose one of"):
        pipe.sampler = inspect.getfile


@pytest.mark.parametrize(
    "options",
    [
        {"unet_lora_layers": 5},
        {"unet_lora_layers": {"a": 5}},
        {"unet_lora_layers": {"a": torch.zeros(2)}, "weight_name": 5},
        {"unet_lora_layers": {"a": torch.zeros(2)}, "unet_lora_adapter_metadata": 5},
        {"unet_lora_layers": {"a": torch.zeros(2)}, "unet_lora_adapter_metadata": {"a": print}},
    ],
)
def test_loras_that_cannot_be_saved(sd: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        sd.pipe().save_lora_weights(tmp_path, **options)
    assert not [*tmp_path.iterdir()]


def test_loras_that_cannot_be_saved_there(sd: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    layers = {"a": torch.zeros(2)}
    with pytest.raises(InvalidRequestError):
        sd.pipe().save_lora_weights(5, unet_lora_layers=layers)
    with pytest.raises(OutputError):
        sd.pipe().save_lora_weights(
            tmp_path / "file" / "x", unet_lora_layers=layers, save_function=print
        )


@pytest.mark.parametrize("source", [None, 5, {"a": 1}, ["a", "b"], []])
def test_ip_adapters_that_are_none(tiny: Any, source: Any) -> None:
    pipe = tiny.pipe()
    for arguments in ((source, "models", ["a.bin"] * 3), ("x/y", ["b"] * 3, source or 5)):
        with pytest.raises(InvalidRequestError, match="takes one adapter"):
            pipe.load_ip_adapter(*arguments)
    with pytest.raises(InvalidRequestError, match=r"--ip-adapter h94/IP-Adapter:models/a\.bin"):
        pipe.load_ip_adapter(["h94/IP-Adapter"], subfolder=["models"], weight_name=["a.bin"])


@pytest.mark.parametrize("device", ["meta", "sparse"])
def test_latents_without_numbers(sd: Any, device: str) -> None:
    latents = torch.zeros(1, 4, 12, 8)
    wrong = latents.to("meta") if device == "meta" else latents.to_sparse()
    with pytest.raises(InvalidRequestError, match="dense tensor"):
        sd.pipe()("a", latents=wrong, **SIZE)


def test_images_as_masks(sd: Any) -> None:
    processor = sd.pipe().image_processor
    with pytest.raises(InvalidRequestError, match="image="):
        processor.binarize(Image.new("L", (8, 8)))
    with pytest.raises(InvalidRequestError, match="must be an array"):
        processor.numpy_to_pil("x")
