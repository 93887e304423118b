"""Adapters of every kind, shared by the tests of this room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from oracle.builders import Zoo
    from oracle.peft_models import TrainedZoo


@pytest.fixture(scope="session")
def trained(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> TrainedZoo:
    from oracle.adapter_zoo import SPECS
    from oracle.peft_models import TrainedZoo

    return TrainedZoo(zoo, SPECS, tmp_path_factory.mktemp("trained"))
