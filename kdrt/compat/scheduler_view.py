"""The noise schedule of a pipeline, as diffusers' LMSDiscreteScheduler shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt.bundle import SchedulerFacts
from kdrt.common.validation import MAX_STEPS, check_int
from kdrt.compat.absent import SaysWhatThereIs, refused
from kdrt.compat.config import Config
from kdrt.compat.grid import TrainingTable, default_schedule
from kdrt.errors import InvalidRequestError


class SchedulerView(SaysWhatThereIs):
    """The checkpoint's noise schedule, as LMSDiscreteScheduler showed it.

    Attributes:
        config: its resolved configuration.
        alphas_cumprod: float32 ``[N]``.
        sigmas: the grid of the last run or :meth:`set_timesteps`, at first that of all N
            timesteps; float32 ``[steps + 1]``, descending, last 0.
        timesteps: its timesteps, without the final 0.
        num_inference_steps: how many steps that are.
    """

    order = 1
    instead = (
        "it has the grid, in sigmas and timesteps, and what steps is chosen with "
        "pipe.set_scheduler(…); another grid is that of a scheduler of diffusers, as "
        "pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)"
    )
    from_config = from_pretrained = refused(
        "this shows the schedule of a model that is loaded; call that of a scheduler of diffusers, "
        "as LMSDiscreteScheduler.from_config(pipe.scheduler.config)"
    )
    _settable = ("config", "alphas_cumprod", "num_inference_steps", "sigmas", "timesteps")

    def __init__(self, facts: SchedulerFacts, table: TrainingTable) -> None:
        known = facts.model_dump(exclude={"explicit"})
        self.config = Config(
            known,
            _class_name="LMSDiscreteScheduler",
            # Those that another scheduler's ``from_config`` shall not take over.
            _use_default_values=[name for name in known if name not in facts.explicit],
        )
        self.alphas_cumprod = table.alphas_cumprod
        self._facts, self._table = facts, table
        self.set_timesteps(facts.num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Show the grid of this many steps.

        Raises:
            InvalidRequestError: it is no number of steps.
        """
        most = max(MAX_STEPS, self._facts.num_train_timesteps)
        steps = check_int("num_inference_steps", num_inference_steps, 1, most)
        sigmas, timesteps = default_schedule(self._facts, self._table, steps)
        self.show(sigmas, timesteps.to(device))

    def show(self, sigmas: Tensor, timesteps: Tensor) -> None:
        """Show the grid of a run, sigmas ``[steps + 1]`` and timesteps ``[steps]``."""
        self.num_inference_steps = len(sigmas) - 1
        self.sigmas, self.timesteps = sigmas, timesteps

    @property
    def init_noise_sigma(self) -> Tensor:
        """What diffusers' own loops multiply unit noise by: the highest σ, and with ``leading``
        spacing √(σ² + 1). The removed pipelines, and these, multiply by ``sigmas[0]``."""
        highest = self.sigmas.max()
        if self.config.timestep_spacing in ("linspace", "trailing"):
            return highest
        return (highest**2 + 1) ** 0.5

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in self._settable:
            raise InvalidRequestError(f"{name!r} of this scheduler cannot be set; {self.instead}")
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)
