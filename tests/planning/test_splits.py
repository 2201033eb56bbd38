import json

import numpy as np
import pytest
from sklearn.model_selection import KFold

from autoseg.errors import SettingError
from autoseg.planning import make_splits, read_splits

IDS = [f"case_{index:02d}" for index in range(23)]


@pytest.mark.parametrize("count", [5, 6, 23, 200])
@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_those_of_scikit_learn(count, folds):
    ids = [f"case_{index:03d}" for index in range(count)]
    made = make_splits(list(reversed(ids)), folds=folds)
    expected = KFold(folds, shuffle=True, random_state=12345).split(ids)
    for fold, (train, val) in zip(made.folds, expected, strict=True):
        assert fold.train == tuple(np.array(ids)[train])
        assert fold.val == tuple(np.array(ids)[val])


@pytest.mark.parametrize(("cases", "folds"), [(2, 2), (3, 3), (4, 4)])
def test_fewer_cases_than_folds_give_fewer_folds(cases, folds):
    made = make_splits(IDS[:cases])
    assert len(made.folds) == folds
    assert sorted(case for fold in made.folds for case in fold.val) == IDS[:cases]
    assert all(fold.train for fold in made.folds)


def test_a_group_stays_on_one_side():
    groups = {case: f"patient {index // 3}" for index, case in enumerate(IDS)}
    made = make_splits(IDS, groups=groups)
    assert sorted(case for fold in made.folds for case in fold.val) == IDS
    for fold in made.folds:
        assert not {groups[case] for case in fold.train} & {groups[case] for case in fold.val}
        assert set(fold.train) | set(fold.val) == set(IDS)
    lengths = [len(fold.val) for fold in made.folds]
    assert max(lengths) - min(lengths) <= 3


def test_one_large_group_fills_a_fold_of_its_own():
    groups = {case: "large" if index < 15 else case for index, case in enumerate(IDS)}
    made = make_splits(IDS, folds=3, groups=groups)
    assert sorted(len(fold.val) for fold in made.folds) == [4, 4, 15]


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        (["one"], {}, "one case"),
        (IDS, {"groups": dict.fromkeys(IDS, "same")}, "one group"),
        (IDS, {"folds": 1}, "1 folds"),
        (IDS, {"groups": {"case_00": "a"}}, "(?s)without a group.*case_01"),
    ],
)
def test_what_cannot_be_split_is_refused(ids, options, words):
    with pytest.raises(SettingError, match=words):
        make_splits(ids, **options)


def write(tmp_path, content):
    path = tmp_path / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_folds_are_read_from_a_file(tmp_path):
    folds = [{"train": IDS[:20], "val": IDS[20:]}, {"train": IDS[5:], "val": IDS[:5]}]
    for content in (folds, {"version": 1, "seed": 3, "folds": folds}):
        made = read_splits(write(tmp_path, content), IDS)
        assert [list(fold.val) for fold in made.folds] == [IDS[20:], IDS[:5]]
        assert list(made.folds[0].train) == IDS[:20]


def test_groups_are_read_from_a_file(tmp_path):
    groups = {case: index // 4 for index, case in enumerate(IDS)}
    expected = make_splits(IDS, folds=3, groups={case: str(group) for case, group in groups.items()})
    assert read_splits(write(tmp_path, groups), IDS, folds=3) == expected
    assert read_splits(write(tmp_path, {"groups": groups}), IDS, folds=3) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ([], "no folds"),
        ({"folds": 3}, "no folds"),
        ([{"train": ["case_00"]}], '"val"'),
        ([{"train": ["case_00"], "val": ["case_99"]}], "case_99"),
        ([{"train": ["case_00", "case_01"], "val": ["case_01"]}], "train and val at once"),
        ({"case_00": ["a"]}, "neither folds nor a group"),
        ({"case_00": "a", "case_01": "b"}, "without a group"),
        ("3", "no folds"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, content, words):
    with pytest.raises(SettingError, match=words):
        read_splits(write(tmp_path, content), IDS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"nowhere\.json"):
        read_splits(tmp_path / "nowhere.json", IDS)
