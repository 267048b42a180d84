"""`edgevla train --policy X --list-settings`: what can be set, to what it is set where nobody says, and its meaning.

Names and defaults are the policy's own config and its recipe's; only the words stand here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from .account_config import NO_EFFECT
from .config import TrainConfig
from .policies import config_class
from .start import OPTIONS

FROM_THE_DATASET = ("input_features", "output_features")
MEANINGS = {
    # every policy
    "n_obs_steps": "observations that one inference looks at",
    "n_action_steps": "actions of a chunk that `sync` carries out before it asks again",
    "normalization_mapping": "how pictures, state and actions are normalised: MEAN_STD, MIN_MAX, QUANTILES, IDENTITY",
    "chunk_size": "actions that one inference predicts",
    "max_state_dim": "width that the state is padded to",
    "max_action_dim": "width that actions are padded to",
    "future_state_max_offset": "trained for states of up to so many steps later; 0: the present one alone",
    "dtype": "of the weights: float32 or bfloat16",
    "tokenizer_max_length": "tokens that the prompt is padded or cut to",
    "empty_cameras": "places for cameras that are not there",
    "freeze_vision_encoder": "what sees does not learn",
    "train_expert_only": "only the action expert learns, not the language model",
    "min_period": "shortest period of the time embedding",
    "max_period": "longest period of the time embedding",
    # ACT, Diffusion
    "vision_backbone": "ResNet that sees: resnet18, resnet34, resnet50",
    "pretrained_backbone_weights": "torchvision's name of its first weights; none: random",
    "replace_final_stride_with_dilation": "a finer last feature map",
    "pre_norm": "normalise before attention, not behind it",
    "dim_model": "width of the transformer",
    "n_heads": "attention heads",
    "dim_feedforward": "hidden width of its feed-forward layers",
    "feedforward_activation": "relu or gelu",
    "n_encoder_layers": "layers of the encoder",
    "n_decoder_layers": "layers of the decoder",
    "use_vae": "learn a latent of the demonstrator's style (zero at inference)",
    "latent_dim": "numbers of that latent",
    "n_vae_encoder_layers": "layers of what makes it",
    "temporal_ensemble_coeff": "decay of temporal ensembling, the bundle's default execution; none: no ensembling",
    "dropout": "share of activations dropped while training",
    "kl_weight": "weight of the latent's divergence in the loss",
    "optimizer_lr_backbone": "learning rate of what sees",
    "horizon": "actions that are denoised, past ones included",
    "drop_n_last_frames": "last rows of an episode that begin no sample",
    "resize_shape": "(height, width) that pictures are brought to first",
    "crop_shape": "(height, width) that is cut out of a picture",
    "crop_ratio": "the same as a share of the picture",
    "crop_is_random": "cut at a random place while training, else in the middle",
    "use_group_norm": "group in place of batch normalisation in what sees",
    "spatial_softmax_num_keypoints": "points that a picture becomes",
    "use_separate_rgb_encoder_per_camera": "each camera has an encoder of its own",
    "down_dims": "channels of the U-Net, level by level",
    "kernel_size": "of its convolutions",
    "n_groups": "of its group normalisation",
    "diffusion_step_embed_dim": "width of the time embedding",
    "use_film_scale_modulation": "the condition scales as well as shifts",
    "noise_scheduler_type": "DDPM or DDIM",
    "num_train_timesteps": "noise levels while training",
    "beta_schedule": "how noise grows over them",
    "beta_start": "noise of the first",
    "beta_end": "noise of the last",
    "prediction_type": "what the network predicts: epsilon or sample",
    "clip_sample": "bound the chunk while denoising",
    "clip_sample_range": "by this, normalised",
    "num_inference_steps": "denoise steps at inference; none: as many as while training",
    "do_mask_loss_for_padding": "steps behind the episode's end do not teach",
    # flow matching on a language model
    "num_steps": "denoise steps at inference",
    "num_denoising_steps": "denoise steps at inference",
    "resize_imgs_with_padding": "size that pictures are brought to, with bars",
    "image_resolution": "(height, width) that pictures are brought to, with bars",
    "adapt_to_pi_aloha": "turn ALOHA's joints into Pi0's convention",
    "train_state_proj": "the layer that takes the state learns",
    "vlm_model_name": "the language model that it is built on",
    "attention_mode": "how the expert attends to the language model: cross_attn or self_attn",
    "pad_language_to": "longest in the batch, or max_length",
    "num_expert_layers": "layers of the expert; at most 0: as many as the language model's",
    "num_vlm_layers": "layers of the language model that are kept",
    "self_attn_every_n_layers": "every so many layers the expert attends to itself",
    "expert_width_multiplier": "width of the expert, as a share of the language model's",
    "paligemma_variant": "size of the language model",
    "action_expert_variant": "size of the expert",
    "time_sampling_beta_alpha": "alpha of the beta distribution that training draws times from",
    "time_sampling_beta_beta": "beta of the same",
    "time_sampling_scale": "scale of the times drawn",
    "time_sampling_offset": "offset of the times drawn",
    "rtc_training_max_delay": "longest committed beginning of a chunk that it is trained for; 0: none",
    "one_step_time_shift": "trained for one denoise step by times nearer to noise, 3 to 4; 0: not",
    "snapflow_weight": "trained for one denoise step by its own two half steps (--recipe snapflow: 0.1); 0: not",
    "use_relative_actions": "actions are differences from the state",
    "relative_exclude_joints": "joints whose actions stay absolute",
    # X-VLA
    "hidden_size": "width of the transformer",
    "depth": "its layers",
    "num_heads": "its attention heads",
    "mlp_ratio": "hidden width of its feed-forward layers, times its width",
    "num_domains": "robots or data sets with soft prompts of their own",
    "len_soft_prompts": "tokens of such a prompt",
    "dim_time": "width of the time embedding",
    "domain_feature_key": "feature of the dataset that says each sample's domain",
    "action_mode": "action space: loss terms and what is hidden from the network",
    "use_proprio": "the state is an input",
    "num_image_views": "pictures that the network takes",
    "freeze_language_encoder": "the language model does not learn",
    "train_policy_transformer": "the transformer learns",
    "train_soft_prompts": "the soft prompts learn",
    # GR00T
    "image_size": "(height, width) that pictures are brought to",
    "embodiment_tag": "the kind of body, which has projections of its own",
    "tune_llm": "the language model learns",
    "tune_visual": "what sees learns",
    "tune_projector": "the projections of state and action learn",
    "tune_diffusion_model": "the action head learns",
}
"""Field of a config -> what it does. One without words is listed by its name alone."""
SHOWN = ("steps", "batch_size", "save_freq", "seed", "precision")


def lines(policy: str) -> Iterator[str]:
    """The list, for people. Raises CheckpointError: no such policy."""
    cls = config_class(policy)
    recipe = TrainConfig.resolve(policy, {})
    yield f"{policy}: options, as its recipe has them ({recipe.source})"
    optimizer, scheduler = recipe.optimizer, recipe.scheduler
    of_recipe = {name: getattr(recipe, name) for name in SHOWN}
    of_recipe |= {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    of_recipe |= {"grad_clip": optimizer.grad_clip_norm, "schedule": scheduler.type}
    yield from (f"  --{name.replace('_', '-'):<28} {said(value)}" for name, value in of_recipe.items())
    settings = {f.name: recipe.settings.get(f.name, _default(f)) for f in dataclasses.fields(cls)}
    mine = [n for n in settings if n not in (*FROM_THE_DATASET, *OPTIONS, *NO_EFFECT)]
    yield f"{policy}: fields of its config.json, each with --set KEY=VALUE"
    for name in (n for n in mine if n in MEANINGS):
        yield f"  {name:<30} {said(settings[name]):<24} {MEANINGS[name]}"
    others = [f"{n}={said(settings[n])}" for n in mine if n not in MEANINGS]
    yield from ([f"  as LeRobot names them, without words here: {', '.join(others)}"] if others else [])


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def said(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None or isinstance(value, str):
        return value or "none"
    return json.dumps(value) if isinstance(value, bool | list | tuple | dict) else f"{value:g}"
