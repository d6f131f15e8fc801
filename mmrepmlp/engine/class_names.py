# SPDX-License-Identifier: Apache-2.0
"""Whether the class names of a data set are those of its files.

mmpretrain numbers folders in alphabetical order and mmdetection categories in the order of the file, whatever the order
of the names in a config. What is not understood here passes.
"""

import mmengine
from mmengine.dataset import BaseDataset

from .annotations import SWITCH, AnnotationError, are_from, is_a


def check_class_names(dataset: BaseDataset, alone: bool) -> list[str]:
    """Compare the class names of a data set with those in its files.

    Args:
        dataset: A data set that a training reads.
        alone: Whether it reads no other.

    Returns:
        What is likely to be a mistake, a sentence or two each.

    Raises:
        AnnotationError: The data set is alone and has none of the classes, so that there is nothing to learn.
    """
    names, (source, found) = own_names(dataset), names_in_files(dataset)
    if names is None or found is None:
        return []
    # Categories that the config does not name get no number; all folders do.
    labels = found if is_a(dataset, "CustomDataset") else [name for name in found if name in names]
    if not labels:
        mistake = (
            f"{source} has the categories {found}, and metainfo.classes={names} names none of them: no box is used."
        )
        if alone:
            raise AnnotationError(f"{mistake} Correct the names. {SWITCH}")
        return [mistake]
    mistakes = []
    missing = [name for name in names if name not in labels]
    if missing and labels is not found:
        mistakes.append(f"{source} has no category {missing}: its categories are {found}.")
    if any(labels.index(name) != index for index, name in enumerate(names) if name in labels):
        mistakes.append(
            f"{source} numbers the classes in the order {labels}, but the config names them in the order {names}. Use "
            "the former, or predictions get wrong names."
        )
    return mistakes


def own_names(dataset: BaseDataset) -> list[str] | None:
    """The class names of a data set that a config sets; None where they are those of the framework's class."""
    names = dataset.metainfo.get("classes")
    is_own = isinstance(names, (list, tuple)) and names != type(dataset).METAINFO.get("classes")
    return list(names) if is_own else None


def names_in_files(dataset: BaseDataset) -> tuple[str, list[str] | None]:
    """Where a data set reads its class names, and these in the order of their numbers; None where that is not known."""
    if is_a(dataset, "CustomDataset") and isinstance(getattr(dataset, "folder_to_idx", None), dict):
        return dataset.img_prefix.rstrip("/"), list(dataset.folder_to_idx)
    load = type(dataset).load_data_list
    if load.__qualname__ == "CocoDataset.load_data_list" and are_from([load], "mmdet"):
        categories = mmengine.load(dataset.ann_file, file_format="json", backend_args=dataset.backend_args)[
            "categories"
        ]
        return dataset.ann_file, [category["name"] for category in categories]
    return "", None
