"""A MODEL on a kdrt engine, called as ComfyUI's samplers call it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt import InvalidRequestError, Pipeline
from kdrt.bundle import EdmFacts, PredictionType, TensorInfo
from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.inputs import DenoiserInputs, UNetConditioning
from kdrt.denoise.parts import Parts
from kdrt.denoise.scaling import Scaling
from kdrt.prompt import Conditioning
from kdrt_engines import EngineSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.support.controlled import LAYERS, unet_network
from tests.support.fake_comfyui import FakeComfyUI, waves
from tests.support.tiny_model import (
    CHANNELS,
    POOLED,
    WIDTHS,
    Family,
    Recorder,
    TinyModel,
    tiny_model,
)

ROWS, HEIGHT, WIDTH, TOKENS = 2, 6, 5, 7
SIZES = {
    "height": 1024,
    "width": 768,
    "crop_h": 8,
    "crop_w": 0,
    "target_height": 1000,
    "target_width": 16_384,
}


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patcher_of(comfyui: FakeComfyUI, pipeline: Pipeline, *, whole_timesteps: bool = True) -> Any:
    return comfyui.module("model").engine_model(pipeline, whole_timesteps=whole_timesteps)


def conditions(model: Any, family: Family, rows: int = ROWS) -> dict[str, Tensor]:
    """What ComfyUI hands over for rows with prompts of their own."""
    width = sum(WIDTHS if family == "sdxl" else WIDTHS[:1])
    told = {"c_crossattn": random(rows, TOKENS, width, seed=2)}
    if family == "sdxl":
        pooled = random(rows, POOLED, seed=3)
        told["y"] = torch.cat([model.encode_adm(row[None], **SIZES) for row in pooled])
    return told


def latents(rows: int = ROWS) -> Tensor:
    return 5 * random(rows, CHANNELS, HEIGHT, WIDTH)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_it_denoises_as_our_denoiser(
    family: Family, prediction_type: PredictionType, comfyui: FakeComfyUI, tmp_path: Path
) -> None:
    pipeline = tiny_model(tmp_path, family, prediction_type=prediction_type).pipeline
    model = patcher_of(comfyui, pipeline, whole_timesteps=False).model
    told = conditions(model, family)
    own = Denoiser(
        pipeline.engines["unet"],
        Scaling(prediction_type, pipeline.noise_schedule),
        images=ROWS,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        parts=Parts(),
    )
    pooled = random(ROWS, POOLED, seed=3) if family == "sdxl" else None
    ids = torch.tensor([[*SIZES.values()]] * ROWS).float() if family == "sdxl" else None
    own.prepare(
        DenoiserInputs(positive=UNetConditioning(Conditioning(told["c_crossattn"], pooled), ids))
    )
    for sigma in (14.0, 1.2345, 0.05):
        expected = own(latents(), sigma)
        with torch.inference_mode():  # as ComfyUI runs
            found = model.apply_model(latents(), torch.full((ROWS,), sigma), **told)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_row_has_a_noise_level_and_a_prompt(comfyui: FakeComfyUI, sdxl: TinyModel) -> None:
    model = patcher_of(comfyui, sdxl.pipeline).model
    told, sigmas = conditions(model, "sdxl"), torch.tensor([9.0, 0.5])
    both = model.apply_model(latents(), sigmas, **told)
    for row in range(ROWS):
        one = {name: tensor[row : row + 1] for name, tensor in told.items()}
        alone = model.apply_model(latents()[row : row + 1], sigmas[row : row + 1], **one)
        assert torch.equal(both[row : row + 1], alone)


def test_timesteps_are_whole_as_comfyuis_where_that_is_asked_for(
    comfyui: FakeComfyUI, sd: TinyModel
) -> None:
    sigmas = torch.tensor([9.0, 0.5])
    own = [sd.pipeline.noise_schedule.timestep(sigma) for sigma in sigmas.tolist()]
    for whole, expected in ((True, [*map(round, own)]), (False, own)):
        model = patcher_of(comfyui, sd.pipeline, whole_timesteps=whole).model
        model.apply_model(latents(), sigmas, **conditions(model, "sd"))
        assert sd.unet.calls[-1]["timestep"].tolist() == pytest.approx(expected, abs=1e-3)


def test_more_rows_than_the_engine_takes_run_in_turns(
    comfyui: FakeComfyUI, sd: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = patcher_of(comfyui, sd.pipeline).model
    told, sigmas = conditions(model, "sd", rows=5), torch.full((5,), 2.0)
    at_once = model.apply_model(latents(5), sigmas, **told)
    sd.unet.calls.clear()
    monkeypatch.setattr(TorchEngine, "limits", lambda self: {"B": (1, 2)})
    assert torch.equal(model.apply_model(latents(5), sigmas, **told), at_once)
    assert [len(call["sample"]) for call in sd.unet.calls] == [2, 2, 1]


def test_numbers_come_back_from_their_waves(comfyui: FakeComfyUI) -> None:
    numbers = [0.0, 8.0, 1024.0, 16_384.0, -64.0, 6.0, 2.5]
    embedded = torch.cat([waves(number) for number in numbers])[None]
    assert comfyui.module("unet").embedded_numbers(embedded).tolist() == [numbers]


def test_the_vaes_own_factor_is_that_of_the_latents(comfyui: FakeComfyUI, sd: TinyModel) -> None:
    """ComfyUI has that of the family."""
    assert patcher_of(comfyui, sd.pipeline).model.latent_format.scale_factor == 0.18215
    configs = sd.pipeline.bundle.path / "configs"
    configs.mkdir()
    (configs / "vae.json").write_text('{"scaling_factor": 0.5}')
    assert patcher_of(comfyui, sd.pipeline).model.latent_format.scale_factor == 0.5


class TestControl:
    @pytest.fixture
    def controlled(self, sd: TinyModel) -> Recorder:
        """A second UNet of the pipeline, which takes residuals."""
        pipeline, manifest = sd.pipeline, sd.pipeline.bundle.manifest
        plain = manifest.components["unet"]
        shape = ("B", CHANNELS, "h", "w")
        added = [TensorInfo(name=name, dtype="float32", shape=shape) for name in LAYERS]
        unet = plain.model_copy(update={"inputs": (*plain.inputs, *added)})
        recorder = Recorder(unet_network, [tensor.name for tensor in unet.inputs])
        pipeline.bundle.manifest = manifest.model_copy(
            update={
                "components": {**manifest.components, "unet-control": unet},
                "variants": {"control": {"unet": "unet-control"}},
            }
        )
        pipeline.engines["unet-control"] = TorchEngine(recorder, unet.spec())
        return recorder

    def test_residuals_go_where_they_belong(
        self, comfyui: FakeComfyUI, sd: TinyModel, controlled: Recorder
    ) -> None:
        model = patcher_of(comfyui, sd.pipeline).model
        skip, middle = (random(ROWS, CHANNELS, HEIGHT, WIDTH, seed=seed) for seed in (7, 8))
        control = {"input": [], "middle": [middle], "output": [skip]}
        model.apply_model(latents(), torch.ones(ROWS), control=control, **conditions(model, "sd"))
        (call,) = controlled.calls
        assert torch.equal(call["down_residual_0"], skip)
        assert torch.equal(call["mid_residual"], middle)
        assert not call["adapter_residual_0"].any()
        assert not sd.unet.calls

    def test_what_is_missing_adds_nothing(
        self, comfyui: FakeComfyUI, sd: TinyModel, controlled: Recorder
    ) -> None:
        model = patcher_of(comfyui, sd.pipeline).model
        told, residual = conditions(model, "sd"), random(ROWS, CHANNELS, HEIGHT, WIDTH)
        for control in (
            {"middle": [residual], "output": [residual]},
            {"middle": [residual], "output": [None]},
        ):
            model.apply_model(latents(), torch.ones(ROWS), control=control, **told)
        assert not controlled.calls[-1]["down_residual_0"].any()
        model.apply_model(
            latents(), torch.ones(ROWS), control={"middle": [None], "output": []}, **told
        )
        assert (len(controlled.calls), len(sd.unet.calls)) == (2, 1)

    @pytest.mark.parametrize(
        ("control", "message"),
        [
            ({"input": [torch.ones(1)]}, "T2I-Adapters of ComfyUI do not work"),
            ({"output": [torch.ones(1)] * 2}, "adds to 2 skip connections and 'tiny' has 1"),
        ],
    )
    def test_others_are_refused(
        self,
        control: dict[str, list[Tensor]],
        message: str,
        comfyui: FakeComfyUI,
        sd: TinyModel,
        controlled: Recorder,
    ) -> None:
        model = patcher_of(comfyui, sd.pipeline).model
        with pytest.raises(InvalidRequestError, match=message):
            model.apply_model(
                latents(), torch.ones(ROWS), control=control, **conditions(model, "sd")
            )

    def test_a_bundle_without_them_says_what_to_export(
        self, comfyui: FakeComfyUI, sd: TinyModel
    ) -> None:
        model = patcher_of(comfyui, sd.pipeline).model
        with pytest.raises(InvalidRequestError, match=r"export it with .* --controlnet"):
            model.apply_model(
                latents(),
                torch.ones(ROWS),
                control={"middle": [torch.ones(1)]},
                **conditions(model, "sd"),
            )


def test_an_inpainting_model_is_told_the_mask(comfyui: FakeComfyUI, sd: TinyModel) -> None:
    spec = sd.pipeline.engines["unet"].spec
    sample = replace(spec.input("sample"), shape=("B", 2 * CHANNELS + 1, "h", "w"))
    inputs = (sample, *(each for each in spec.inputs if each.name != "sample"))
    recorder = Recorder(lambda **told: told["sample"][:, :CHANNELS], [t.name for t in inputs])
    sd.pipeline.engines["unet"] = TorchEngine(recorder, EngineSpec(inputs, spec.outputs))
    model = patcher_of(comfyui, sd.pipeline).model
    assert model.concat_keys == ("mask", "masked_image")
    seen = random(ROWS, CHANNELS + 1, HEIGHT, WIDTH, seed=9)
    model.apply_model(latents(), torch.ones(ROWS), c_concat=seen, **conditions(model, "sd"))
    assert torch.equal(recorder.calls[-1]["sample"][:, CHANNELS:], seen)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"distilled": True}, "the input 'timestep_cond', which ComfyUI has nothing for"),
        (
            {
                "edm": EdmFacts(
                    sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras"
                )
            },
            "EDM formulation",
        ),
    ],
)
def test_models_that_comfyui_calls_otherwise_are_refused(
    options: dict[str, Any], reason: str, comfyui: FakeComfyUI, tmp_path: Path
) -> None:
    pipeline = tiny_model(tmp_path, **options).pipeline
    with pytest.raises(InvalidRequestError, match=f"'tiny' cannot be a MODEL: .*{reason}"):
        patcher_of(comfyui, pipeline)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: model.add_patches({"a": 1}, 0.8), "a LoRA or a merge"),
        (lambda model: model.add_hook_patches(None, {"a": 1}), "a hook with a LoRA"),
        (lambda model: model.get_key_patches("diffusion_model."), "a merge"),
        (lambda model: model.add_weight_wrapper("a", None), "a weight wrapper"),
        (
            lambda model: model.add_object_patch("diffusion_model.out", None),
            "'diffusion_model.out'",
        ),
        (lambda model: model.model.state_dict_for_saving(), "saving a checkpoint"),
    ],
)
def test_what_needs_weights_is_refused(
    change: Any, what: str, comfyui: FakeComfyUI, sd: TinyModel
) -> None:
    copied = patcher_of(comfyui, sd.pipeline).clone()  # nodes change copies
    with pytest.raises(InvalidRequestError, match=f"{what} needs the weights of the UNet"):
        change(copied)


def test_a_lora_of_strength_0_and_another_sampling_are_not(
    comfyui: FakeComfyUI, sd: TinyModel
) -> None:
    copied = patcher_of(comfyui, sd.pipeline).clone()
    assert copied.add_patches({"a": 1}, 0.0) == []
    copied.add_object_patch("model_sampling", "another")
    assert copied.object_patches == {"model_sampling": "another"}


@pytest.mark.parametrize(
    "options",
    [
        {"patches": {"output_block_patch": [print]}},
        {"patches_replace": {"attn1": {("middle", 0): print}}},
        {"wrappers": {"diffusion_model": {"easycache": [print]}}},
    ],
)
def test_a_patch_of_a_layer_is_refused_by_name(
    options: dict[str, Any], comfyui: FakeComfyUI, sd: TinyModel
) -> None:
    model = patcher_of(comfyui, sd.pipeline).model
    (patches,) = options.values()
    name = "easycache" if "wrappers" in options else next(iter(patches))
    with pytest.raises(InvalidRequestError, match=f"the UNet's inside .*{name}"):
        model.apply_model(
            latents(), torch.ones(ROWS), transformer_options=options, **conditions(model, "sd")
        )


def test_conditioning_of_another_family_is_refused(comfyui: FakeComfyUI, sdxl: TinyModel) -> None:
    model = patcher_of(comfyui, sdxl.pipeline).model
    told = conditions(model, "sdxl")
    for wrong, message in (
        ({"c_crossattn": told["c_crossattn"][..., :-1]}, "16 numbers as encoder_hidden_states"),
        ({"y": None}, "5 numbers as text_embeds, and the conditioning holds nothing"),
    ):
        given = {name: value for name, value in {**told, **wrong}.items() if value is not None}
        with pytest.raises(InvalidRequestError, match=message):
            model.apply_model(latents(), torch.ones(ROWS), **given)
