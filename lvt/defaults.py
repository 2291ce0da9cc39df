"""Every configuration key with its default. A configuration file names those that differ.

The keys are those of the original, so that its files work here; those marked (new) exist only here. Keys that no
code reads are kept for such files alone, and marked (unused).
"""

from __future__ import annotations

from typing import Any


def convnet(in_channels: int, out_channels: int) -> dict[str, Any]:
    """ENCODER or GENERATOR node."""
    return {
        "WEIGHTS": "",  # netE, netG: a published .pth, or a checkpoint or run folder of this project
        "NAME": "",
        "IN_CHANNELS": in_channels,
        "NF": 16,  # width
        "RES_CHANNELS": 0,  # width inside residual blocks
        "OUT_CHANNELS": out_channels,
        "NORM": "",
        "N_LAYERS": 0,  # residual blocks
        "SPECTRAL": False,
        "OUT_ACTIVATION": "",
    }


TRANSFORMER = {
    "NC": 0,  # codebooks
    "NV": 0,  # codes per codebook
    "KERNEL": [],
    "STRIDE": [],  # of the subscale slices
    "D": 0,  # width
    "DA": 0,  # width of one head
    "DE": 0,  # width of embeddings
    "BLOCKS_E": [],  # attention block (t, h, w) of each layer
    "N_HEAD_E": [],
    "BLOCKS_D": [],
    "N_HEAD_D": [],
    "N_PRIME": 0,  # first frames that are neither trained nor counted
    "PAD_VALUE": -1,
    "SHARE_P": True,
    "SHARE_EMBEDDINGS": False,
    "CLASS_NUM": 0,  # > 0: class-conditional
    "DROPOUT": 0.0,  # (new)
    "QKV_INIT": "matrix",  # (new) "tensor": the original's smaller scale
    "ATTENTION": "auto",  # (new) auto, sdpa, flex
}

DEFAULTS: dict[str, Any] = {
    "MODEL": {
        "DEVICE": "auto",  # auto, cpu, cuda, cuda:N
        "META_ARCHITECTURE": "",  # VQVAEModel or VideoTransformerModel
        "PIXEL_MEAN": [0.0],
        "PIXEL_STD": [1.0],
        "IGNORE_INDEX": -100,  # (unused)
        "INIT_TYPE": "normal",  # xavier_uniform
        "INIT_VARIANCE": 0.02,  # (unused)
        "GRADIENT_CHECKPOINTING": False,  # (new) transformer: less memory, a third more time
        "AUTOREGRESSIVE": {"NAME": "", "VT": TRANSFORMER},
        "ENCODER": convnet(1, 16),
        "GENERATOR": convnet(16, 3),  # WEIGHTS: also the transformer's
        "CODEBOOK": {
            "NUM": 1,
            "SIZE": 512,
            "DIM": 256,
            "WEIGHTS": "",
            "EMA": False,
            "BETA": 1.0,  # of the commitment loss
            "INIT_FROM_DATA": True,  # (new) begin with vectors of the first batch
            "START_AFTER": 0.0,  # (new) share of the training before the codebooks begin; nothing is quantised before
            "RESTART_BELOW": 0.0,  # (new) replace codes that get fewer vectors per batch; 0: never
        },
    },
    "INPUT": {
        "FORMAT": "L",  # RGB; L only in files that are meant as a base
        "N_FRAMES_PER_VIDEO_TRAIN": -1,  # -1: all frames of a video, as single frames or as a whole
        "N_FRAMES_PER_VIDEO_TEST": -1,
        "SCALE_TO_ZEROONE": True,  # (unused) frames always are scaled, codes never
        "PREPARE_SLICES_TRAIN": False,  # (unused) the transformer always trains on slices
        "SIZE": 64,  # (new) side of the frames
    },
    "GAN_MODE_ON": False,  # (unused)
    "DATASETS": {
        "ROOT": "datasets",  # (new) folder of the named data sets
        "TRAIN": [],  # names, or anything that videodata.open_clips takes, or files of codes
        "TEST": [],
        "VIDEOS": [],  # (new) data sets of frames that ContinuationEvaluator continues
    },
    "DATALOADER": {"NUM_WORKERS": 4, "SAMPLER_TRAIN": "TrainingSampler"},
    "SOLVER": {
        "MAX_ITER": 40000,
        "SUPERVISED_MAX_ITER": -1,  # (unused)
        "LR_SCHEDULER_NAME": "Identity",  # WarmupMultiStepLR, WarmupCosineLR
        "GAMMA": 0.1,
        "STEPS": [],
        "WARMUP_ITERS": -1,
        "WARMUP_FACTOR": 0.01,
        "WARMUP_METHOD": "linear",  # constant
        "OPTIMIZER_NAME": "adam",  # adamw (new), rmsprop
        "LR_G": 1e-4,
        "LR_D": 4e-4,  # (unused)
        "WEIGHT_DECAY": {"BASE_G": 0.0, "BIAS_G": 0.0, "NORM_G": 0.0, "BASE_D": 0.0, "BIAS_D": 0.0, "NORM_D": 0.0},
        "ADAM": {"BETA1_G": 0.9, "BETA2_G": 0.9, "BETA1_D": 0.9, "BETA2_D": 0.999},
        "RMSPROP": {"ALPHA_G": 0.99, "ALPHA_D": 0.99, "MOMENTUM_G": 0.0, "MOMENTUM_D": 0.0},
        "ACCUMULATION_STEPS": 1,  # micro-batches per step; the batch is IMS_PER_BATCH all the same
        "CHECKPOINT_PERIOD": 50000,
        "IMS_PER_BATCH": 32,
        "D_UPDATE_RATIO": 1,  # (unused)
        "D_INIT_ITERS": -1,  # (unused)
        "MAXUP": False,  # (unused)
        "SLICES_PER_CLIP": 1,  # (new) slices trained per clip and step; -1: all
        "CLIP_NORM": 0.0,  # (new) gradient norm; 0: no clipping
        "EMA": 0.0,  # (new) decay of averaged weights; 0: none
        "PRECISION": "fp32",  # (new) bf16, fp16
        "COMPILE": False,  # (new) torch.compile
    },
    "LOSS": {
        "PIXEL": {"ONN": False, "LAMBDA": 1.0, "MODE": "l2"},
        "PERCEPTUAL": {"LAMBDA": 0.0, "WEIGHTS": ""},  # (new) LPIPS in the VQ-VAE's loss
        "GAN": {  # (unused)
            "ONN": False, "LAMBDA_G": 1.0, "LAMBDA_D": 1.0, "REAL_LABEL": 1.0, "FAKE_LABEL": 0.0, "MODE": "wgan",
        },
    },
    "TEST": {
        "EXPECTED_RESULTS": [],  # (task, metric, value, tolerance); a miss ends with status 1
        "EVAL_PERIOD": 0,  # steps between evaluations while training; 0: at the end
        "N_SAMPLES": 0,  # > 0: evaluate that many items, evenly spread
        "EVALUATORS": "",  # of MSEEvaluator, CodesExtractor, BitsEvaluator, VTSampler, separated by commas
        "VT_SAMPLER": {
            "VQ_VAE": {"CFG": "", "ENCODER_WEIGHTS": "", "GENERATOR_WEIGHTS": "", "CODEBOOK_WEIGHTS": ""},
            "N_PRIME": 5,  # frames that are given
            "NUM_SAMPLES": 10,  # samples per clip, all at once
            "TEMPERATURE": 1.0,  # (new)
            "TOP_K": 0,  # (new) 0: all codes
            "TOP_P": 1.0,  # (new)
        },
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,  # -1: 0
    "CUDNN_BENCHMARK": True,  # (unused)
    "VIS_PERIOD": 100000000000,  # steps between pictures
    "LOG_PERIOD": 20,  # (new) steps between lines of the log
    "MAX_MINUTES": 0.0,  # (new) save and stop after this time; 0: no limit
    "VERSION": 1,
    "GLOBAL": {"HACK": 1.0},  # (unused)
}  # fmt: skip
