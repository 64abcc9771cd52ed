import pytest

from gateway.demo.faults import BEHAVIOURS
from gateway.demo.scenario import (
    Fault,
    SimulatorSettings,
    UnknownFault,
    scenario_for,
)


def test_scenario_takes_every_setting_when_the_name_has_them_all() -> None:
    name = "sim-r200-t64-f50.5-c2-a3-m8-d0.5-xbig-event"
    assert scenario_for(name, SimulatorSettings()) == SimulatorSettings(
        rate=200.0,
        tokens=64,
        first_token_ms=50.5,
        chunk_tokens=2,
        fault=Fault.BIG_EVENT,
        fault_after_tokens=3,
        event_megabytes=8,
        drip_ms=0.5,
    )


@pytest.mark.parametrize(
    "name",
    ["sim", "tiny", "", "sim-", "sim-large", "sim-r", "sim-z9", "a/b", "sim-r5x"],
)
def test_scenario_is_the_default_when_the_name_says_nothing(name: str) -> None:
    defaults = SimulatorSettings(rate=7.0, fault=Fault.NO_DONE)
    assert scenario_for(name, defaults) == defaults


def test_scenario_keeps_the_other_defaults_when_the_name_has_one() -> None:
    defaults = SimulatorSettings(rate=7.0, fault=Fault.NO_DONE)
    changed = SimulatorSettings(rate=7.0, tokens=3, fault=Fault.NO_DONE)
    assert scenario_for("sim-t3", defaults) == changed


def test_scenario_refuses_when_the_fault_is_unknown() -> None:
    with pytest.raises(UnknownFault):
        scenario_for("sim-r0-xtruncated", SimulatorSettings())


@pytest.mark.parametrize("fault", Fault)
def test_fault_can_be_asked_for_and_has_a_behaviour(fault: Fault) -> None:
    assert scenario_for(f"sim-x{fault}", SimulatorSettings()).fault is fault
    assert fault in BEHAVIOURS
