"""Which way a run's steps are computed: the fast one where it is found equal, else the plain one."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from medqa.config import TrainConfig
from medqa.hardware.device import Device
from medqa.hardware.group import current_group
from medqa.model.batch import TokenisedRow
from medqa.model.decoder import PackedDecoder, why_not_packed
from medqa.model.elementwise import Elementwise
from medqa.model.parity import check_parity
from medqa.train.engine import Engine, PlainEngine
from medqa.train.fast import PackedEngine

__all__ = ["choose_engine"]

log = logging.getLogger(__name__)


def choose_engine(
    model: Any,
    rows: Sequence[TokenisedRow],
    config: TrainConfig,
    device: Device,
    notice: Callable[[str], None],
    elementwise: Elementwise | None = None,
) -> Engine:
    """Take the fast path where it applies and is found equal to the plain one on the user's own rows.

    Args:
        model: PeftModel whose adapter is trained.
        rows: Rows to compare the two on.
        config: How to train.
        device: Where.
        notice: Told of anything the user must know.
        elementwise: Compiled operations, if there are some already.
    """
    if not config.fast_path:
        log.info("Plain path: set by train.fast_path")
        return PlainEngine(model, config, device, "set by train.fast_path")
    reason = "fp16 needs a loss scaler" if device.precision == "fp16" else why_not_packed(model)
    reason = "the weights are sharded" if current_group().sharded else reason
    if reason is not None:
        log.info("Plain path: %s", reason)
        return PlainEngine(model, config, device, reason)
    try:
        decoder = PackedDecoder(model)
        decoder.elementwise = elementwise or decoder.elementwise
        parity = check_parity(model, decoder, rows, config.answer_weight, device)
        reason = None if parity.equal else f"the fast one differs from it here ({parity})"
    except RuntimeError as exc:  # an operation that is missing, or too little memory
        reason = f"the fast one does not run here: {str(exc).splitlines()[0]}"
    # Either way groups rows otherwise: all processes take the same.
    reason = next((one for one in current_group().gather(reason) if one is not None), None)
    if reason is not None:
        device.release_memory()
        notice(f"Plain path, slower: {reason}")
        return PlainEngine(model, config, device, reason)
    log.info("Fast path: equals the plain one on your own rows (%s)", parity)
    log.info("Attention: %s (%s)", decoder.kernel, decoder.kernel_reason)
    engine = PackedEngine(decoder, config, device, notice)
    engine.record |= {"parity": str(parity), "attention": f"{decoder.kernel}: {decoder.kernel_reason}"}
    return engine
