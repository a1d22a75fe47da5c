"""Objections to a film from its pixels and its file's header; the same rules for cleaning and serving."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy import fft  # NumPy would load it with the first film, in a decoder whose memory is limited already
from PIL import Image

from chestxray.arrays import Float64Array, Int64Array
from chestxray.images import LOOKED_AT, MARGIN, WHITE, Pixels, Radiograph, sampling_step
from chestxray.schema import Verdict
from chestxray.text import without_accents

MAX_COLOURED: Final = 0.05  # fraction of pixels; a coloured annotation on a greyscale film stays below it
MIN_SIDE: Final = 64  # pixels; in smaller films ribs and vessels cannot be told apart
MAX_ASPECT: Final = 3.0  # longer side / shorter side; published chest films stay below 2.5
MIN_DEVIATION: Final = 0.02  # of the grey level, 0 to 1; an empty exposure stays below it
MIN_STRUCTURE: Final = 0.85  # of the deviation is left where areas are averaged: films keep 0.95, noise 0.15
MIN_SHAPE: Final = 0.05  # by which middle and sides differ, as in ``brightness_of_middle``, in every published film
AREAS: Final = 32  # areas a side over which a film is averaged; each has 4 x 4 pixels or more
DEFECTIVE: Final = 0.001  # of a film's pixels may be brighter than its white

HASH_SIDE: Final = 16  # the perceptual hash compares 16 x 16 places with two neighbours each
HASH_BITS: Final = 2 * HASH_SIDE * HASH_SIDE

# Grey levels, over the film's middle without a tenth of each side. Of 1,800 published films none has more than 1.1% of
# its middle at its brightest level, 12.3% at its darkest, or fewer than 60 levels from the 1st to the 99th percentile.
MAX_WHITE: Final = 0.05
MAX_BLACK: Final = 0.25
MIN_LEVELS: Final = 32
# Number of equally frequent shades, of 64 from the 1st to the 99th percentile, that would be as diverse as the film's
# (the exponential of their entropy). All 5,216 published training films have 20 or more, all but five of them 22; a
# sigmoid window an eighth as wide as the levels leaves 2 to 8, a thousand hot pixels in 224 x 224 at most 5.
SHADES: Final = 64
MIN_SHADES: Final = 14.0
FEWEST_BRIGHT: Final = 1 / 3  # of the range from black to white, which every published film spans

# Mean of the film's middle less that of its dark parts, in grey levels, -1 to 1. All 5,216 published training films are
# above +0.05; as negatives, all but two of them are below -0.1.
MIN_MIDDLE: Final = -0.1
MAX_SHOWN: Final = 64  # letters of a file's value in a message
# Amplitude of the detail of 18 to 39 cycles a side over that of 3 to 11. All 5,216 published training films are above
# 0.15, and above 0.05 if blurred by 1% of a side; blurred by 1.5%, or enlarged from 24 pixels, they are below 0.04.
MIN_DETAIL: Final = 0.04
# Detail along the rows over that along the columns. All 5,216 published training films have 0.30 or more, 119 adults'
# films 0.21; moved along the rows by 8% of the width, films have 0.08 to 0.25.
MIN_ALONG_ROWS: Final = 0.19
COARSE: Final = slice(3, 12)  # cycles over the film's width or height
FINE: Final = slice(18, 40)
DETAIL_LINES: Final = 32  # rows, and columns, of which the detail is measured

# Damage in transfer. None of the 5,216 published training films repeats more than 3.6% of its rows or columns at an
# edge; in none, nor in 120 of full size, do neighbouring lines differ more than 1.4 times as much as lines two apart.
MAX_REPEATED: Final = 0.05
MAX_DISPLACED: Final = 2.0
SAMPLED: Final = 64  # places along each line that are compared

MIN_FILM_SIDE: Final = 128  # pixels; smaller films are not classified: the published ones are larger


class Objection(NamedTuple):
    """Why a film must not be classified."""

    verdict: Verdict
    reason: str


def objection_to(film: Radiograph) -> Objection | None:
    """Return the first objection to a decoded film, or None."""
    if film.coloured > MAX_COLOURED:
        return Objection(
            Verdict.COLOURED,
            f"{film.coloured:.0%} of its pixels are coloured, so it is not a plain radiograph "
            f"(limit {MAX_COLOURED:.0%})",
        )
    if min(film.width, film.height) < MIN_SIDE:
        return Objection(Verdict.TOO_SMALL, f"{film.width} x {film.height} pixels; each side needs at least {MIN_SIDE}")
    if reason := _odd_shape(film) or _not_frontal_chest(film):
        return Objection(Verdict.NOT_FRONTAL, reason)
    return _objection_to_pixels(film)


def _objection_to_pixels(film: Radiograph) -> Objection | None:
    deviation = deviation_of(film.pixels) / _white_of(film.pixels)
    if deviation < MIN_DEVIATION and not _is_raised(film.pixels):
        reason = f"its grey levels are almost uniform: they deviate by {deviation:.1%} (at least {MIN_DEVIATION:.0%})"
        return Objection(Verdict.BLANK, reason)
    if min(film.width, film.height) < MIN_FILM_SIDE:
        return None
    if (middle := brightness_of_middle(film.pixels)) < MIN_MIDDLE:
        return Objection(
            Verdict.INVERTED,
            f"its grey levels are those of a negative: its middle is darker than its sides and lungs by {-middle:.0%} "
            f"(limit {-MIN_MIDDLE:.0%}). Invert it, if it is one",
        )
    for verdict, objection in (
        (Verdict.GREY_LEVELS, objection_to_levels),
        (Verdict.TRUNCATED, objection_to_lines),
        (Verdict.TRUNCATED, objection_to_artefacts),
        (Verdict.TOO_SMALL, objection_to_detail),
    ):
        if reason := objection(film.pixels):
            return Objection(verdict, reason)
    return None


def _white_of(pixels: Pixels) -> int:
    """Return the white level of the bits that a film uses, because some files hold 12-bit values in 16 bits.

    One pixel in a thousand may be brighter, like defective pixels of a detector.
    """
    if pixels.dtype == np.uint8:
        return WHITE
    step = sampling_step(pixels)
    brightest = int(np.quantile(pixels[::step, ::step], 1.0 - DEFECTIVE, method="lower"))
    return int((1 << max(brightest.bit_length(), WHITE.bit_length())) - 1)


def _is_raised(pixels: Pixels) -> bool:
    """Check whether values of fewer bits lie above an offset, as signed values that were stored as unsigned ones.

    Such a film deviates little, as an empty exposure does, but not in noise: areas differ, and so do middle and sides.
    """
    height, width = pixels.shape
    if pixels.dtype == np.uint8 or min(height, width) < MIN_FILM_SIDE:
        return False
    step = sampling_step(pixels)
    looked_at = pixels[::step, ::step].astype(np.float32)
    low, high = np.quantile(looked_at, (DEFECTIVE, 1.0 - DEFECTIVE))
    levels = looked_at.clip(low, high) - low
    areas = np.asarray(Image.fromarray(levels).resize((AREAS, AREAS), Image.Resampling.BOX))
    noise = max(MIN_STRUCTURE * float(levels.std()), MIN_DEVIATION * float(high - low), 1.0)
    return float(areas.std()) > noise and abs(brightness_of_middle(pixels)) > MIN_SHAPE


def deviation_of(pixels: Pixels) -> float:
    """Return the standard deviation of all grey levels, from counts for 8 bits, in a fifth of the time."""
    if pixels.dtype != np.uint8:
        return float(pixels.std())
    counts = counts_of(pixels).astype(np.float64)
    levels = np.arange(len(counts))
    mean = counts @ levels / pixels.size
    return float(np.sqrt(counts @ (levels - mean) ** 2 / pixels.size))


def counts_of(pixels: Pixels) -> Int64Array:
    """Return how often each grey level occurs; 8 bits are counted by Pillow, in half of NumPy's time.

    Args:
        pixels: shape (h, w), uint8 or uint16; may be a view with steps.

    Returns: shape (levels,); it may end at the highest level that occurs.
    """
    if pixels.dtype != np.uint8:
        return np.bincount(pixels.ravel())
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).histogram(), dtype=np.int64)


def _odd_shape(film: Radiograph) -> str:
    """Return the objection to the film's shape; empty if there is none."""
    if max(film.width, film.height) <= MAX_ASPECT * min(film.width, film.height):
        return ""
    return f"{film.width} x {film.height} pixels; a chest film's sides differ by less than {MAX_ASPECT:g} times"


def objection_to_levels(pixels: Pixels) -> str:
    """Return the objection to a film's grey levels; empty if there is none.

    A film that is only dark or pale, or uses few bits, gets no objection: its levels can be stretched
    (``preprocess.levelled``). Levels that were clipped, or rounded to a few values, are lost.

    Args:
        pixels: shape (h, w), uint8 or uint16.
    """
    height, width = pixels.shape
    step = sampling_step(pixels)
    rows, columns = height // MARGIN, width // MARGIN
    counts = counts_of(pixels[rows : height - rows : step, columns : width - columns : step])
    occur = np.flatnonzero(counts)
    shares = counts / counts.sum()
    white, black = float(shares[occur[-1]]), float(shares[occur[0]])
    remedy = "Export it with the window that its levels need"
    if white > MAX_WHITE or black > MAX_BLACK:
        share, level, limit = (white, "white", MAX_WHITE) if white > MAX_WHITE else (black, "black", MAX_BLACK)
        return f"its grey levels are cut off: {share:.0%} of its middle is plain {level} (limit {limit:.0%}). {remedy}"
    below = np.cumsum(shares)
    low, high = np.searchsorted(below, (0.01, 0.99))
    levels = int(np.count_nonzero(counts[low : high + 1]))
    if levels < MIN_LEVELS:
        return (
            f"its grey levels are too few: {levels} from dark to bright (at least {MIN_LEVELS}). "
            "Export it again with more bits"
        )
    if (shades := _shades(shares, int(low), int(high))) < MIN_SHADES:
        return (
            f"its grey levels are crowded: they are as diverse as {shades:.0f} of {SHADES} shades (at least "
            f"{MIN_SHADES:.0f}), as after an ill-fitting window or with many defective pixels. {remedy}"
        )
    return ""


def _shades(shares: Float64Array, low: int, high: int) -> float:
    """Return how many equally frequent shades between two levels would be as diverse as the shares of all levels."""
    place = (np.arange(len(shares)) - low) * (SHADES / max(1, high - low + 1))
    shade = np.bincount(place.clip(0, SHADES - 1).astype(np.int64), weights=shares)
    some = shade[shade > 0.0]
    return float(np.exp(-np.sum(some * np.log(some))))


def objection_to_lines(pixels: Pixels) -> str:
    """Return the objection to a film's rows and columns, damaged in transfer; empty if there is none.

    A line that is repeated up to an edge stands for lines that never arrived; where neighbours differ much more than
    lines two apart do, every other line is displaced.

    Args:
        pixels: shape (h, w), uint8 or uint16; each side at least ``MIN_FILM_SIDE``.
    """
    for lines, name in ((pixels, "row"), (pixels.T, "column")):
        places = slice(None, None, max(1, lines.shape[1] // SAMPLED))
        many = int(MAX_REPEATED * len(lines)) + 1
        for edge in (lines[:many, places], lines[: -many - 1 : -1, places]):
            if edge[0].min() != edge[0].max() and (edge == edge[0]).all():
                return f"it is incomplete: at one edge {many} {name}s or more are the same. Send or export it again"
        start = max(0, (len(lines) - LOOKED_AT) // 2)
        some = lines[start : start + LOOKED_AT, places].astype(np.float32)
        near, far = (float(np.abs(some[step:] - some[:-step]).mean()) for step in (1, 2))
        if near > MAX_DISPLACED * far:
            return (
                f"every other {name} of it is displaced: {name}s differ {near / far:.1f} times as much from the next "
                f"as from the next but one (limit {MAX_DISPLACED:g}). Send or export it again"
            )
    return ""


def objection_to_detail(pixels: Pixels) -> str:
    """Return the objection to a film without fine detail; empty if there is none."""
    energies = [_energies(lines) for lines in (pixels, pixels.T)]
    along, down = map(_detail, energies)
    if along < MIN_ALONG_ROWS * down:
        return (
            f"it is blurred along its rows, as by motion: its detail there has {along / down:.0%} of the strength of "
            f"that along its columns (at least {MIN_ALONG_ROWS:.0%}). Export it again"
        )
    if (detail := _detail(energies[0] + energies[1])) >= MIN_DETAIL:
        return ""
    return (
        f"it is blurred, or enlarged from few pixels: its fine detail has {detail:.1%} of the strength of its coarse "
        f"(at least {MIN_DETAIL:.0%}). Export it again, sharp and whole"
    )


def _detail(energies: Float64Array) -> float:
    """Return how strong fine detail, as of vessels and ribs, is relative to coarse structures: a ratio of amplitudes.

    A network takes lungs without vessels for a pneumonia. The ratio depends neither on gain and offset nor on the depth
    of the grey levels, and hardly on the number of pixels. It is 0 for a picture without either.
    """
    coarse, fine = energies
    return float(np.sqrt(fine / coarse)) if coarse > 0.0 else 0.0


def _energies(pixels: Pixels) -> Float64Array:
    """Return the energies in ``COARSE`` and ``FINE`` of some of a picture's rows, without a tenth at each end."""
    rows, columns = pixels.shape
    chosen = np.linspace(rows // MARGIN, rows - 1 - rows // MARGIN, DETAIL_LINES).astype(np.int64)
    lines = pixels[chosen, :: max(1, columns // MIN_FILM_SIDE)].astype(np.float32)
    lines -= lines.mean(axis=1, keepdims=True)
    lines *= np.hanning(lines.shape[1]).astype(np.float32)  # both ends of a row differ, which is no detail
    energy = np.square(np.abs(fft.rfft(lines)))
    return np.array([energy[:, COARSE].sum(), energy[:, FINE].sum()], dtype=np.float64)


def brightness_of_middle(pixels: Pixels) -> float:
    """Return how much brighter spine and heart are than the film's sides and the lungs, -1 to 1.

    Bone and heart are white on a chest film, the lungs and the air beside the patient dark; on a negative the reverse
    holds. The regions are fractions of the film, wide enough for any centring.

    Args:
        pixels: shape (h, w), uint8 or uint16.
    """
    height, width = pixels.shape

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        rows = slice(int(top * height), max(int(bottom * height), int(top * height) + 1))
        columns = slice(int(left * width), max(int(right * width), int(left * width) + 1))
        return float(pixels[rows, columns].mean())

    middle = mean(0.35, 0.8, 0.45, 0.55)
    sides = (mean(0.0, 1.0, 0.0, 0.06) + mean(0.0, 1.0, 0.94, 1.0)) / 2
    lungs = (mean(0.3, 0.6, 0.2, 0.38) + mean(0.3, 0.6, 0.62, 0.8)) / 2
    white = float(np.iinfo(pixels.dtype).max)
    counts = counts_of(pixels[:: max(1, height // 128), :: max(1, width // 128)])
    below = np.cumsum(counts)
    darkest, brightest = np.searchsorted(below, (0.01 * below[-1], 0.99 * below[-1]))
    span = min(1.0, float(brightest - darkest) / white / FEWEST_BRIGHT) or 1.0  # finds dark negatives too
    return (middle - (sides + lungs) / 2) / white / span


def perceptual_hash(pixels: Pixels) -> str:
    """Return the 512-bit difference hash as 128 hexadecimal digits: is each place brighter than its neighbours?

    Compared are the right neighbour on a grid of 17 x 16 places and the lower one on a grid of 16 x 17.
    Survives rescaling, recompression and changes of brightness. Source: N. Krawetz, "Kind of like that" (2013),
    who uses 8 x 8 right neighbours. Those 64 bits are too few here, since one chest looks like another:
    ``data.dedup`` has the counts.

    Args:
        pixels: shape (h, w), uint8 or uint16.
    """
    image = Image.fromarray(pixels.astype(np.float32))
    wide = np.asarray(image.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))
    high = np.asarray(image.resize((HASH_SIDE, HASH_SIDE + 1), Image.Resampling.BOX))
    bits = np.concatenate([(wide[:, :-1] > wide[:, 1:]).ravel(), (high[:-1] > high[1:]).ravel()])
    return np.packbits(bits).tobytes().hex()


# --------------------------------------------------------------------------- what was added to a film

# Letters, lines, stripes, blocks of a coarse JPEG, pixels that were repeated: a network takes most of these for a
# disease. Each limit lies beyond all 5,216 published training films and 120 of full size; the most that occurs there
# is named beside it.
FEW_LINES: Final = 32  # lines that are looked at, where a few tell enough
PLACES_A_LINE: Final = 64  # along each line, at which lines are compared
SAMPLES: Final = 180  # places along a line at most, between which jumps are counted, on half as many lines

# A jump is a step between neighbours of more than a third of the film's range, in two adjoining lines at once: noise
# and defective pixels make none. Most that occurs: 1.2%; letters all over a film make 2 to 6%, a grid 4 to 18%.
JUMP: Final = 0.35
MAX_JUMPS: Final = 0.015

BLOCK: Final = 8  # pixels a side of a JPEG's block
MAX_BLOCKS: Final = 4.0  # levels differ so many times as much between blocks as within; most that occurs: 2.1

FEWEST_LINES: Final = 128  # that differ from the one before, as in the smallest film that is classified
ENLARGED: Final = 0.7  # of all lines; fewer differ in a film whose pixels were repeated, and 86% in every published one

STRIPES: Final = 10  # cycles over a side, from which stripes are looked for
MAX_STRIPES: Final = 1000.0  # times the energy of one frequency is that of the median; most that occurs: 323


def objection_to_artefacts(pixels: Pixels) -> str:
    """Return the objection to what was added to a film, or to how it was coded; empty if there is none.

    Args:
        pixels: shape (h, w), uint8 or uint16; each side at least ``FEWEST_LINES``.
    """
    return _enlarged(pixels) or _written_over(pixels) or _in_blocks(pixels) or _striped(pixels)


def _enlarged(pixels: Pixels) -> str:
    found = [_differing(lines) for lines in (pixels, pixels.T)]
    few = any(n < min(FEWEST_LINES, ENLARGED * len(lines)) for n, lines in zip(found, (pixels, pixels.T), strict=True))
    if not few:
        return ""
    return (
        f"it was enlarged from few pixels: {found[0]} rows and {found[1]} columns of it differ from the one before "
        f"(at least {FEWEST_LINES}). Export it as it was taken"
    )


def _differing(lines: Pixels) -> int:
    """Return the number of lines that differ from the one before, the first among them."""
    some = lines[:, :: max(1, lines.shape[1] // PLACES_A_LINE)]
    return 1 + int(np.count_nonzero((some[1:] != some[:-1]).any(axis=1)))


def _written_over(pixels: Pixels) -> str:
    height, width = pixels.shape
    rows, columns = height // MARGIN, width // MARGIN
    middle = pixels[rows : height - rows, columns : width - columns]
    some = middle[:: max(1, height // FEW_LINES), :: max(1, width // FEW_LINES)].ravel()
    ends = [len(some) // 100, len(some) * 99 // 100]
    low, high = np.partition(some, ends)[ends].astype(np.float64)
    span = max(1.0, high - low)
    share = float(np.mean([share_of_jumps(lines, JUMP * span) for lines in (middle, middle.T)]))
    if share <= MAX_JUMPS:
        return ""
    return (
        f"letters, lines, a grid or noise lie over it, or lines of it are lost: at {share:.1%} of its places the level "
        f"jumps by more than a third of its range (limit {MAX_JUMPS:.1%}). Export it without annotations"
    )


def share_of_jumps(lines: Pixels, jump: float) -> float:
    """Return the share of places along some lines at which two adjoining lines jump by more, in the same direction.

    Where one of them alone jumps too seldom to matter, the share is that of the one, which is greater.
    """
    down, across = max(1, 2 * len(lines) // SAMPLES), max(1, round(lines.shape[1] / SAMPLES))
    wide = np.int16 if lines.dtype == np.uint8 else np.int32
    upper = np.diff(lines[:-1:down, ::across].astype(wide), axis=1)
    if (share := np.count_nonzero(np.abs(upper) > jump) / upper.size) <= MAX_JUMPS:
        return share
    lower = np.diff(lines[1::down, ::across].astype(wide), axis=1)
    alike = np.where(np.sign(upper) == np.sign(lower), np.minimum(np.abs(upper), np.abs(lower)), 0)
    return np.count_nonzero(alike > jump) / alike.size


def _in_blocks(pixels: Pixels) -> str:
    times = float(np.sqrt(np.prod([_contrast_of_blocks(lines) for lines in (pixels, pixels.T)])))
    if times <= MAX_BLOCKS:
        return ""
    return (
        f"its grey levels are those of a JPEG of very low quality: between its blocks they differ {times:.1f} times as "
        f"much as within (limit {MAX_BLOCKS:g}). Export it with a quality of 75 or more"
    )


def _contrast_of_blocks(lines: Pixels) -> float:
    """Return how many times as much neighbours differ at every eighth step along some lines as at the other steps."""
    some = lines[:: max(1, len(lines) // FEW_LINES)].astype(np.int32)
    steps = np.abs(np.diff(some, axis=1)).sum(axis=0)
    means = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=0)
    others = (means.sum() - means.max()) / (BLOCK - 1)
    return float(means.max() / others) if others > 0.0 else 1.0


def _striped(pixels: Pixels) -> str:
    for lines, across in ((pixels, "columns"), (pixels.T, "rows")):
        if (times := strength_of_stripes(lines)) > MAX_STRIPES:
            return (
                f"stripes lie over it, as of a grid or a photographed screen: one frequency along its {across} is "
                f"{times:.0f} times as strong as the others (limit {MAX_STRIPES:.0f}). Export it again"
            )
    return ""


def strength_of_stripes(lines: Pixels) -> float:
    """Return how many times as strong one frequency along some lines is as the median one, after whitening.

    Films have the less energy the higher the frequency is, about by its square.
    """
    some = lines[:: max(1, len(lines) // FEW_LINES), :: max(1, lines.shape[1] // FEWEST_LINES)]
    profile = some.mean(axis=0, dtype=np.float64)
    window, whitening = _windows(len(profile))
    energy = np.square(np.abs(fft.rfft((profile - profile.mean()) * window))[STRIPES:]) * whitening
    median = float(np.partition(energy, len(energy) // 2)[len(energy) // 2])
    return float(energy.max() / median) if median > 0.0 else 1.0


@cache
def _windows(length: int) -> tuple[Float64Array, Float64Array]:
    """Return a window over a profile, and the squares of the frequencies from ``STRIPES``."""
    return np.hanning(length), np.square(np.arange(STRIPES, length // 2 + 1, dtype=np.float64))


# --------------------------------------------------------------------------- the words of a header


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Values that a file may state for a plain frontal film of the chest (DICOM PS3.3 C.7.3.1.1.1, C.8.11.1,
# PS3.16 annex L). Words are read by their meaning; an unknown or missing value is no objection.
OTHER_MODALITIES: Final = _words_of(
    """
    AR BI BMD CF CT DF DG DM DS EC ECG EM ES FA FS GM IO IVOCT IVUS KER LEN LP LS MA MG MR MS NM OAM OCT OP OPM OPR
    OPT OPTBSV OPTENF OPV OSS PT PX SM SRF ST TG US VA VF XC
    """
)
CHEST: Final = _words_of(
    """
    BRUST BRUSTKORB CHEST CHESTABDOMEN CHST CXR HEART LUNG LUNGE LUNGS PORTABLECHEST POUMON POUMONS PULMON PULMONAR
    PULMONARY PULMONES RIB RIBS STERNUM THORACIC THORAX THX TORACE TORAX TORAKS TORSO AKCIGER BORSTKAS BROSTKORG
    BRYSTKASSE CHESTAP CHESTPA GOGUS HEMITHORAX HRUDNIK KEUHKOT KLATKI KLATKA LUNGOR MELLKAS PEITO PLICE POITRINE
    THORACIQUE THORAKS ГРУДНАЯ ОГК 胸 흉부
    """
)
OTHER_PARTS: Final = _words_of(
    """
    ABDOMEN ABDOMINAL ANKLE ARM BACK BLADDER BODY BRAIN BREAST CALCANEUS CERVICAL CLAVICLE COCCYX COLON CSPINE ELBOW
    EXTREMITY EYE FACE FEMUR FINGER FINGERS FOOT FOREARM HAND HANDS HEAD HIP HIPS HUMERUS JAW KIDNEY KNEE KNEES LEG
    LEGS LIVER LSPINE LUMBAR MANDIBLE MANO MAXILLA NASAL NECK ORBIT PATELLA PELVIS RADIUS SACRUM SCAPULA SHOULDER
    SINUS SINUSES SKULL SPINE STOMACH TEETH THIGH THUMB TIBIA TOE TOES TOOTH TSPINE ULNA UTERUS WRIST ZYGOMA ABD
    ABDO ADDOME BACINO BASSIN BECKEN BONEAGE BUIK BWS CADERA CLAVICULA COLUMNA COLUNA CRANE CRANEO CRANIO CZASZKA
    ELLENBOGEN EPAULE FUSS GENOU GINOCCHIO HALSWIRBELSAULE HANDGELENK HEUP HOMBRO HUEFTE HUFTE HWS JOELHO KNIE
    KOLANO KUB LWS MIEDNICA PIED POLSO QUADRIL RACHIS RODILLA SCHADEL SCHAEDEL SCHULTER SPALLA THORACOLUMBAR
    VERTEBRA VERTEBRAE WHOLEBODY WIRBELSAULE ЖИВОТ КИСТЬ КОЛЕНО ТАЗ ЧЕРЕП 腹 膝 頭 복부
    """  # noqa: RUF001
)
FRONTAL: Final = _words_of(
    """
    AP PA ANTEROPOSTERIOR POSTEROANTERIOR FRONTAL FRONT FRENTE FRONTALE DECUBITUS LLD RLD APPA ANTERIORPOSTERIOR
    POSTERIORANTERIOR FACE ПРЯМАЯ 正位 正面 정면
    """
)
LATERAL: Final = _words_of(
    """
    LAT LATERAL LATERALE LATERALES LL RL LLAT RLAT PROFIL PROFILE PERFIL SEITLICH XTABLE BOCNA BOCZNA BOCZNE
    CHESTLAT CROSSTABLE DEXTROLATERAL LATEROLATERAL LATERALIS LATERO SEITL SIDEVIEW SINISTROLATERAL ZIJDELINGS
    БОКОВАЯ 侧位 側位 側面 측면
    """
)
OBLIQUE: Final = _words_of(
    """
    OBL OBLIQUE OBLIQUA OBLICUA LAO LPO RAO RPO LLO RLO SCHRAEG SCHRAG SCHRAGAUFNAHME SKOSNA SKOSNE 斜位
    """
)
OTHER_VIEWS: Final = _words_of(
    """
    CC MLO ML LM LMO XCC XCCL XCCM CV AT TAN AXIAL SAGITTAL OCCLUSAL TANGENTIAL INFEROSUPERIOR SWIMMERS
    """
)
SPINE: Final = _words_of(
    "SPINE VERTEBRA VERTEBRAE COLUMNA COLUNA RACHIS WIRBELSAULE"
)  # a spine of the thorax is no chest
# Words of scripts that put no spaces between words: looked for anywhere.
_UNSPACED: Final = frozenset(
    word
    for words in (CHEST, OTHER_PARTS, FRONTAL, LATERAL, OBLIQUE)
    for word in words
    if unicodedata.category(word[0]) == "Lo"
)


def _not_frontal_chest(film: Radiograph) -> str:
    """Return the objection from the file's header: not a plain frontal chest film; empty if there is none."""
    if film.modality in OTHER_MODALITIES:
        return f'its file names the modality "{film.modality}", which is no plain radiograph'
    part = film.body_part if is_chest(film.body_part) is not None else film.series_description
    if is_chest(part) is False:
        return f'its file names the body part "{_shown(part)}", which is not the chest'
    for value, name in (
        (film.view_position, "the view"),
        (film.view_meaning, "the view"),
        (film.series_description, "in its series' description the view"),
    ):
        if view := view_of(value):
            if view != "frontal":
                return f'its file names {name} "{_shown(value)}": {view}, not frontal'
            return ""
    towards = set(film.orientation)
    if {"A", "P"} & towards and {"F", "H"} & towards and not {"L", "R"} & towards:
        return (
            f'its rows and columns run towards "{_shown(film.orientation)}" (PatientOrientation): lateral, not frontal'
        )
    return ""


def is_chest(body_part: str) -> bool | None:
    """Check whether words mean the chest; None if they are unknown.

    ``THORACIC SPINE`` is no chest, and ``CHEST ABDOMEN`` is one.
    """
    words = _words(body_part)
    if words & CHEST and not words & SPINE:
        return True
    return False if words & OTHER_PARTS else None


def view_of(text: str) -> str:
    """Return the view that words state: "frontal", "lateral", "oblique", "another view"; empty if none or several.

    ``LATERAL DECUBITUS`` is frontal: the patient lies on the side, and the beam goes from front to back.
    """
    words = _words(text)
    if "DECUBITUS" in words:
        return "frontal"
    kinds = ((FRONTAL, "frontal"), (OBLIQUE, "oblique"), (LATERAL, "lateral"), (OTHER_VIEWS, "another view"))
    found = [name for known, name in kinds if words & known]
    if "oblique" in found:
        return "oblique"
    return found[0] if len(found) == 1 else ""


def _words(text: str) -> frozenset[str]:
    """Return the words in capitals without accents; ``ANTERO-POSTERIOR`` and ``A P`` count as one word as well."""
    plain = without_accents(text.upper())
    parts = re.findall(r"[^\W\d_]+", plain)
    pairs = ("".join(pair) for pair in pairwise(parts))
    inside = (word for word in _UNSPACED if word in plain)
    return frozenset(parts) | frozenset(pairs) | frozenset(inside)


def _shown(value: str) -> str:
    """Return a value of a file in a form that is safe in a message."""
    return "".join(letter if letter.isprintable() else " " for letter in value)[:MAX_SHOWN]
