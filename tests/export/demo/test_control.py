"""The demo model's ControlNet, as it ships."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline

from kdrt_export.demo.fidelity import held_out_prompts, judge, score
from kdrt_export.demo.outlines import draw_outlines, outline_overlap
from kdrt_export.sources import demo_folder


def test_images_follow_the_outlines_and_still_show_the_prompt() -> None:
    """A part of the score; ``benchmarks/control_fidelity.py`` gives the whole."""
    controlnet = ControlNetModel.from_pretrained(demo_folder("control"), torch_dtype=torch.float32)
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(
        demo_folder(), controlnet=controlnet, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = held_out_prompts(6)
    scenes = [scene for _, scene in prompts]
    overlaps = {}
    for scale in (0.0, 1.0):
        images = pipeline(
            [text for text, _ in prompts],
            image=[draw_outlines(scene) for scene in scenes],
            controlnet_conditioning_scale=scale,
            num_inference_steps=6,
            guidance_scale=4.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        ).images
        pairs = list(zip(images, scenes, strict=True))
        overlaps[scale] = np.mean([outline_overlap(image, scene) for image, scene in pairs])
    assert overlaps[0.0] < 0.6
    assert overlaps[1.0] > 0.8
    assert score(judge(image, scene) for image, scene in pairs) >= 0.75
