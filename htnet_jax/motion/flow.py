"""Onset and apex frame -> optical flow, optical strain, and the (u, v, strain) tensor of a clip.

u points to the right and v down, in pixels at the resolution of the array they are in.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

# The arguments the HTNet release passes to cv2.calcOpticalFlowFarneback.
FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}

# The defaults of OpenCV contrib's DualTVL1OpticalFlow (Zach et al., DAGM 2007; Sanchez et al.,
# IPOL 2013), written out so that a change in OpenCV cannot change a data set silently.
TVL1 = {
    "tau": 0.25,
    "lambda_": 0.15,
    "theta": 0.3,
    "nscales": 5,
    "warps": 5,
    "epsilon": 0.01,
    "innnerIterations": 30,  # OpenCV spells it so
    "outerIterations": 10,
    "scaleStep": 0.8,
    "gamma": 0.0,
    "medianFiltering": 5,
    "useInitialFlow": False,
}

# OpenCV's preset MEDIUM of DISOpticalFlow (Kroeger et al., ECCV 2016), written out for the same
# reason; each is given to the solver's `set...` method.
DIS = {
    "FinestScale": 1,
    "CoarsestScale": -1,  # chosen by the image's size
    "PatchSize": 8,
    "PatchStride": 3,
    "GradientDescentIterations": 25,
    "UseMeanNormalization": True,
    "UseSpatialPropagation": True,
    "VariationalRefinementIterations": 5,
    "VariationalRefinementAlpha": 20.0,
    "VariationalRefinementDelta": 5.0,
    "VariationalRefinementGamma": 10.0,
    "VariationalRefinementEpsilon": 0.01,
}
# A patch must fit into the finest level of the pyramid; OpenCV reads outside the image otherwise.
DIS_SMALLEST = DIS["PatchSize"] << DIS["FinestScale"]


def _farneback(onset: np.ndarray, apex: np.ndarray) -> np.ndarray:
    return cv2.calcOpticalFlowFarneback(onset, apex, None, **FARNEBACK)


def _tvl1(onset: np.ndarray, apex: np.ndarray) -> np.ndarray:
    solver = cv2.optflow.DualTVL1OpticalFlow_create(**TVL1)
    return solver.calc(onset, apex, None)


def _dis(onset: np.ndarray, apex: np.ndarray) -> np.ndarray:
    if min(onset.shape) < DIS_SMALLEST:
        height, width = onset.shape
        raise ValueError(
            f"dis needs at least {DIS_SMALLEST}x{DIS_SMALLEST} pixels; got {height}x{width}"
        )
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for name, value in DIS.items():
        getattr(solver, f"set{name}")(value)
    return solver.calc(onset, apex, None)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "farneback": _farneback,
    "tvl1": _tvl1,
    "dis": _dis,
}

# What comes first: "crop", the flow, at the frames' resolution; or "size", resizing the frames.
ORDERS = ("crop", "size")


def optical_flow(onset: np.ndarray, apex: np.ndarray, method: str = "tvl1") -> np.ndarray:
    """Dense optical flow from the onset to the apex frame.

    Args:
        onset: `(H, W)` uint8, grayscale.
        apex: `(H, W)` uint8, grayscale, the same shape.
        method: `tvl1` (parameters `TVL1`), `farneback` (`FARNEBACK`) or `dis` (`DIS`).

    Returns:
        `(H, W, 2)` float32, pixels: u (right), v (down). The content of onset pixel (x, y) is found
        at (x + u, y + v) in the apex.

    Raises:
        ValueError: Wrong dtype or shape, different shapes, an unknown method, or frames with a side
            below `DIS_SMALLEST` pixels for `dis`.
    """
    if method not in METHODS:
        raise ValueError(f"unknown flow method {method!r}; use one of {', '.join(METHODS)}")
    _check_frames(onset, apex)
    onset, apex = np.ascontiguousarray(onset), np.ascontiguousarray(apex)
    return np.asarray(METHODS[method](onset, apex), np.float32)


# Magnitude of the strain from the four derivatives of the flow (`uy` is du/dy). Public codes
# disagree about the shear: with exy = (uy + vx) / 2 they add 2 exy^2, exy^2 or 4 exy^2.
STRAIN_FORMULAS: dict[
    str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
] = {
    # Frobenius norm of the strain tensor for small displacements (the Green-Lagrange tensor without
    # its quadratic terms), as STSTNet (Liong et al., FG 2019) defines optical strain.
    "green_lagrange_small": lambda ux, uy, vx, vy: np.sqrt(ux**2 + vy**2 + 0.5 * (uy + vx) ** 2),
    # One shear entry of that tensor counted once; seen in public codes, as are the next two.
    "symmetric_norm": lambda ux, uy, vx, vy: np.sqrt(ux**2 + vy**2 + (0.5 * (uy + vx)) ** 2),
    # Frobenius norm of the whole gradient, rotation included.
    "four_terms": lambda ux, uy, vx, vy: np.sqrt(ux**2 + uy**2 + vx**2 + vy**2),
    # With the engineering shear strain uy + vx in place of exy.
    "engineering_shear": lambda ux, uy, vx, vy: np.sqrt(ux**2 + vy**2 + (uy + vx) ** 2),
}


def optical_strain(flow: np.ndarray, formula: str = "green_lagrange_small") -> np.ndarray:
    """Magnitude of the optical strain of a flow field.

    Derivatives are central differences (one-sided at the border).

    Args:
        flow: `(H, W, 2)`: u, v in pixels; H and W at least 2.
        formula: A name in `STRAIN_FORMULAS`.

    Returns:
        `(H, W)` float32, pixels per pixel (no unit), never negative.

    Raises:
        ValueError: Wrong shape or an unknown formula.
    """
    if formula not in STRAIN_FORMULAS:
        known = ", ".join(STRAIN_FORMULAS)
        raise ValueError(f"unknown strain formula {formula!r}; use one of {known}")
    _check_flow(flow)
    if min(flow.shape[:2]) < 2:
        raise ValueError(f"strain needs at least 2x2 pixels; got {flow.shape[0]}x{flow.shape[1]}")
    uy, ux = np.gradient(flow[..., 0].astype(np.float32))
    vy, vx = np.gradient(flow[..., 1].astype(np.float32))
    return STRAIN_FORMULAS[formula](ux, uy, vx, vy).astype(np.float32)


def resize_flow(flow: np.ndarray, size: int) -> np.ndarray:
    """Resizes a flow field (area average) and scales its vectors to the new pixels.

    Args:
        flow: `(H, W, 2)`: u, v in pixels of the H x W image.
        size: Side of the result, in pixels.

    Returns:
        `(size, size, 2)` float32: u, v in pixels of the size x size image.

    Raises:
        ValueError: Wrong shape, or a size below 1.
    """
    _check_flow(flow)
    _check_size(size)
    height, width = flow.shape[:2]
    small = cv2.resize(flow.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return small * np.array([size / width, size / height], np.float32)


def flow_tensor(
    onset: np.ndarray,
    apex: np.ndarray,
    *,
    method: str = "tvl1",
    size: int = 28,
    strain: str = "green_lagrange_small",
    order: str = "crop",
) -> np.ndarray:
    """The tensor of a clip: optical flow at the wanted size, and the strain of that flow.

    The strain is taken after resizing: area averaging first removes the pixel noise that
    derivatives would amplify, and the tensor's third channel then follows from its first two.

    Args:
        onset: `(H, W)` uint8, grayscale.
        apex: `(H, W)` uint8, grayscale.
        method: See `optical_flow`.
        size: Side of the tensor, in pixels, at least 2.
        strain: See `optical_strain`.
        order: `crop`: flow at the frames' resolution, then resized; `size`: the frames resized
            (area average) to size x size, then their flow, as HTNet's script for CAS(ME)^3 does.

    Returns:
        `(size, size, 3)` float32: u, v (pixels of the size x size image), optical strain.

    Raises:
        ValueError: As `optical_flow`, `resize_flow` and `optical_strain`; or an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; use one of {', '.join(ORDERS)}")
    if order == "crop":
        flow = resize_flow(optical_flow(onset, apex, method), size)
    else:
        _check_frames(onset, apex)
        _check_size(size)
        small = [
            cv2.resize(np.ascontiguousarray(frame), (size, size), interpolation=cv2.INTER_AREA)
            for frame in (onset, apex)
        ]
        flow = optical_flow(small[0], small[1], method)
    return np.concatenate([flow, optical_strain(flow, strain)[..., None]], axis=-1)


def minmax_255(flow: np.ndarray) -> np.ndarray:
    """Scales every channel of every clip to 0..255, as the released flow images are.

    Args:
        flow: `(..., H, W, C)`, finite.

    Returns:
        `(..., H, W, C)` float32 in 0..255: each clip's and channel's smallest value becomes 0, its
        largest 255. A constant channel becomes 0.

    Raises:
        ValueError: Fewer than three axes, an empty image, or a value that is not finite.
    """
    if flow.ndim < 3 or 0 in flow.shape[-3:]:
        raise ValueError(f"flow must be (..., H, W, C) and not empty; got shape {flow.shape}")
    if not np.isfinite(flow).all():
        raise ValueError("flow has values that are not finite (NaN or infinity)")
    flow = flow.astype(np.float64)
    low = flow.min(axis=(-3, -2), keepdims=True)
    extent = flow.max(axis=(-3, -2), keepdims=True) - low
    scaled = (flow - low) / np.where(extent > 0, extent, 1.0) * 255.0
    return scaled.astype(np.float32)


def _check_flow(flow: np.ndarray) -> None:
    if flow.ndim != 3 or flow.shape[-1] != 2 or not flow.size:
        raise ValueError(f"flow must be (H, W, 2) and not empty; got shape {flow.shape}")


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel; got {size}")


def _check_frames(onset: np.ndarray, apex: np.ndarray) -> None:
    for name, frame in (("onset", onset), ("apex", apex)):
        if frame.dtype != np.uint8 or frame.ndim != 2 or not frame.size:
            raise ValueError(
                f"the {name} frame must be grayscale, (H, W) uint8; "
                f"got shape {frame.shape}, {frame.dtype}"
            )
    if onset.shape != apex.shape:
        raise ValueError(f"onset {onset.shape} and apex {apex.shape} must have the same shape")
