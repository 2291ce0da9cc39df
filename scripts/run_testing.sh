#!/usr/bin/env bash
# Train the small model on a little data and draw all pictures. Further flags go to the training.
# DATA_PATH: batch files or any source of clips; without it data/UCFData, where that is, else generated moving shapes.
# Writes checkpoints/test, logs/test and results/ where it is called.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
PYTHON="${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}"
DATA_PATH="${DATA_PATH:-$([ -d data/UCFData ] && echo data/UCFData || echo shapes:10,frames=4)}"
weights="${VIDEOGEN_WEIGHTS:-$HOME/.cache/videogen/weights}/vgg16-397923af.pth"
perceptual=0.05
if [ ! -f "$weights" ]; then
    echo "$weights is not there: this test trains with --perceptual_weight 0"
    perceptual=0
fi

"$PYTHON" "$root"/scripts/train_vqgan.py --preset test --data_path "$DATA_PATH" --test_batch 13 --downsample_factor 4 \
    --perceptual_weight "$perceptual" "$@"
"$PYTHON" "$root"/scripts/visualize_vqgan.py --data_path "$DATA_PATH" --batch_idx 0 --num_samples 2 --video_idx 0 \
    --start_frame 0 --num_frames 4 --checkpoint checkpoints/test/best_model_gan.pt --output_dir results/test_viz
