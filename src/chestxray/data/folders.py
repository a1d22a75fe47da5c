"""The meaning of a source's folders for the films in them: label, split, cause; and folders of unknown meaning."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from chestxray.data.labels import CAUSES, PAIRS, SPLIT_WORDS, YES_AND_NO, LabelWords, Meaning, NoLabel, in_one_form
from chestxray.schema import Label, Split

Parts = tuple[str, ...]
_UNNAMED: Final = "(no folder of a class)"


class Place(NamedTuple):
    """The facts that the folders of one film give.

    Attributes:
        label: label of the nearest folder that names one; None for none.
        split: split of the nearest folder that names one.
        cause: cause of the pneumonia.
        may_be_named: whether the film's own name may give the label, because no folder gives one.
        class_folder: the name of the folder that decided; "" for none.
        meaning: the meaning of that folder.
    """

    label: Label | None
    split: Split | None
    cause: str
    may_be_named: bool
    class_folder: str
    meaning: Meaning


class Folders:
    """The folders of a source, seen together: 0 and 1 are classes if both occur, and 17 is none."""

    def __init__(self, films: Sequence[Parts], words: LabelWords) -> None:
        """Read all folders.

        Args:
            films: the folders and the name of each film, inside its source.
            words: the meaning of names.
        """
        self._words = words
        self._beside: defaultdict[Parts, set[str]] = defaultdict(set)
        self._places: dict[Parts, Place] = {}
        counts = Counter(parts[:-1] for parts in films)
        for folder in counts:
            for depth in range(len(folder)):
                self._beside[folder[:depth]].add(folder[depth])
        self._counts = counts

    def of(self, film: Parts) -> Place:
        """Return the facts that the folders of a film give."""
        folder = film[:-1]
        if folder not in self._places:
            self._places[folder] = self._place(folder)
        return self._places[folder]

    def table(self) -> tuple[tuple[str, int, str], ...]:
        """Return (name, number of films, meaning) of each folder of a class; empty if no folder is one."""
        counts: Counter[tuple[str, str]] = Counter()
        for folder, count in self._counts.items():
            place = self.of((*folder, ""))
            counts[place.class_folder or _UNNAMED, _in_words(place)] += count
        if set(counts) <= {(_UNNAMED, "by name")}:
            return ()
        return tuple((name, count, taken) for (name, taken), count in sorted(counts.items()))

    def strange(self) -> Counter[str]:
        """Count films by folders of unknown name that stand beside folders of classes."""
        found: Counter[str] = Counter()
        for folder, count in self._counts.items():
            place = self.of((*folder, ""))
            if place.meaning is NoLabel.UNKNOWN and place.class_folder:
                found[place.class_folder] += count
        return found

    def _place(self, folder: Parts) -> Place:
        split = next((SPLIT_WORDS[word] for word in map(in_one_form, reversed(folder)) if word in SPLIT_WORDS), None)
        cause = next((CAUSES[word] for word in map(in_one_form, reversed(folder)) if word in CAUSES), "")
        decided, name = self._decided(folder)
        if decided is NoLabel.UNKNOWN:
            name = self._class_folder(folder)
        label = decided if isinstance(decided, Label) else None
        may_be_named = decided is NoLabel.UNKNOWN and not name
        return Place(label, split, cause, may_be_named, name, decided)

    def _decided(self, folder: Parts) -> tuple[Meaning, str]:
        """Return the meaning of the nearest folder that has one; a cause inside a pneumonia folder means pneumonia."""
        for depth in range(len(folder) - 1, -1, -1):
            meaning = self._meaning(folder[:depth], folder[depth])
            if meaning is NoLabel.OTHER and in_one_form(folder[depth]) in CAUSES:
                outer, name = self._decided(folder[:depth])
                if outer == Label.PNEUMONIA:
                    return outer, name
            if meaning is not NoLabel.UNKNOWN:
                return meaning, folder[depth]
        return NoLabel.UNKNOWN, ""

    def _meaning(self, parent: Parts, name: str) -> Meaning:
        meaning = self._words.of_folder(name)
        word = in_one_form(name)
        if meaning is NoLabel.UNKNOWN and word in YES_AND_NO:
            beside = {in_one_form(other) for other in self._beside[parent]}
            if beside in PAIRS:
                return YES_AND_NO[word]
        return meaning

    def _class_folder(self, folder: Parts) -> str:
        """Return the unknown folder that stands beside folders of classes; "" if there is none."""
        for depth in range(len(folder)):
            parent = folder[:depth]
            if in_one_form(folder[depth]) not in SPLIT_WORDS and any(
                self._meaning(parent, other) is not NoLabel.UNKNOWN for other in self._beside[parent]
            ):
                return folder[depth]
        return ""


def _in_words(place: Place) -> str:
    if isinstance(place.meaning, Label):
        return place.meaning.value
    if place.meaning is NoLabel.UNKNOWN:
        return "not known" if place.class_folder else "by name"
    return f"left without a label ({place.meaning.value})"
