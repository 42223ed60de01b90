"""Write what was trained as a checkpoint that the node and openpi's tools read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ros_pi0_fast.accel.quantization import Scheme, quantize_params
from ros_pi0_fast.accel.quantized_checkpoint import is_quantized, save_quantized
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.training.metrics import plot_curve
from ros_pi0_fast.weights.checkpoint import save_assets, save_checkpoint


def export_checkpoint(out: Path, params: Any, codec: PolicyCodec, *,
                      records: Sequence[Mapping], summary: Mapping[str, Any], title: str,
                      quantize: tuple[Pi0Fast, Scheme] | None = None) -> None:
    """Replace a checkpoint folder by a new one, with the curve and the run in numbers.

    The folder is complete at any time: the new one is made beside it and then takes its place.

    Args:
        out: the checkpoint folder.
        params: nested dict of float32 arrays, layers stacked.
        codec: that the policy was trained with.
        records: of the metrics file, for `curve.png`.
        summary: for `training.json`.
        title: above the curve.
        quantize: the network and how its weights are quantized, where they are to be.

    Raises:
        FileExistsError: if the folder exists and is no checkpoint.
    """
    if out.exists() and not (out / 'params').is_dir() and not is_quantized(out):
        raise FileExistsError(f'{out}: exists and has no params, expected a checkpoint to '
                              'replace or nothing')
    fresh = out.with_name(f'{out.name}.new')
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    if quantize is None:
        save_checkpoint(fresh, params, codec)
    else:
        save_quantized(fresh, quantize_params(quantize[0], params, quantize[1]), quantize[1],
                       params)
        save_assets(fresh, codec)
    plot_curve(records, fresh / 'curve.png', title=title)
    summary = json.dumps(summary, indent=2, default=str)
    (fresh / 'training.json').write_text(f'{summary}\n', 'utf-8')
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
