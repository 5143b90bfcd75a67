"""What people read of a diffusers pipeline's parts, where the parts themselves are engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdrt.bound_unet import GUIDANCE_INPUT
from kdrt.bundle import Manifest, SchedulerFacts
from kdrt.compat.grid import TrainingTable, default_grid
from kdrt_engines import Engine
from kdrt_engines.spec import DTYPES


class Config(Mapping[str, Any]):
    """A configuration, read by key or by attribute."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"this configuration has no {name!r}; it has {[*self._values]}")
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({self._values})"


class SchedulerView:
    """The checkpoint's noise schedule, as LMSDiscreteScheduler showed it.

    Attributes:
        config: its resolved configuration.
        alphas_cumprod: float32 ``[N]``.
        sigmas: the grid of the last :meth:`set_timesteps`, or that of all N timesteps.
        timesteps: its timesteps, without the final 0.
    """

    def __init__(self, facts: SchedulerFacts, table: TrainingTable) -> None:
        self.config = Config(**facts.model_dump(exclude={"explicit"}))
        self.alphas_cumprod = table.alphas_cumprod
        self._facts, self._table = facts, table
        self.set_timesteps(facts.num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Make the grid of so many steps."""
        self.num_inference_steps = num_inference_steps
        self.sigmas: Tensor = default_grid(self._facts, self._table, num_inference_steps)
        self.timesteps: Tensor = self._table.timestep(self.sigmas[:-1]).to(device)

    @property
    def init_noise_sigma(self) -> float:
        """The highest σ of the grid, by which unit noise is scaled."""
        return float(self.sigmas.max())


class UNetView:
    """The UNet's configuration and dtype.

    Attributes:
        config: the values that a generation depends on.
        dtype: of its weights.
    """

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        spec = engine.spec
        facts = manifest.latents

        def width(name: str) -> int | None:
            return int(spec.input(name).shape[-1]) if spec.has_input(name) else None

        pooled = width("text_embeds")
        sides = facts.default_height // facts.scale, facts.default_width // facts.scale
        self.config = Config(
            in_channels=int(spec.input("sample").shape[1]),
            out_channels=int(spec.outputs[0].shape[1]),
            sample_size=sides[0] if sides[0] == sides[1] else sides,
            cross_attention_dim=width("encoder_hidden_states"),
            time_cond_proj_dim=width(GUIDANCE_INPUT),
            addition_embed_type=None if pooled is None else "text_time",
        )
        self.pooled_width = pooled
        self.dtype = DTYPES[spec.input("sample").dtype]
