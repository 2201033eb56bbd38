"""Which preprocessed store a configuration reads: several share one where their images are alike."""

from __future__ import annotations

from autoseg import records
from autoseg.io.store import CaseStore
from autoseg.schema.folders import PreparedFolder
from autoseg.schema.plan import Configuration, Plan


def store_of(folder: PreparedFolder, made: Plan, configuration: Configuration) -> CaseStore:
    """Where the cases of a configuration lie; plans for other architectures share them unless their spacing differs.

    The second stage of a cascade reads the images of the configuration with its spacing.
    """
    if configuration.previous_stage is not None:
        configuration = _with_same_images(made, configuration)
    name = configuration.name
    main = records.load(Plan, folder.plan) if folder.plan.exists() else made
    if name in main.names and main.configuration(name).spacing == configuration.spacing:
        return CaseStore(folder.store(name))
    return CaseStore(folder.own_store(name, configuration.architecture.label))


def _with_same_images(made: Plan, configuration: Configuration) -> Configuration:
    """The one without an earlier stage whose images are preprocessed alike, else this one."""

    def images(one: Configuration) -> tuple[object, ...]:
        return one.ndim, one.spacing, one.normalization, one.resampling

    same = (one for one in made.configurations if one.previous_stage is None and images(one) == images(configuration))
    return next(same, configuration)
