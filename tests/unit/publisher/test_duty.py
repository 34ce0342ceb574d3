"""Who of several publishers is at work: when one stands by, takes over, and knows that it was fenced."""

from publisher.duty import TAKE_OVER_S, Duty, Turn


def look(duty, now_s, holds_epoch=False):
    return duty.look(holds_epoch=holds_epoch, now_s=now_s)


def test_whoever_holds_the_epoch_works_at_once():
    assert look(Duty(sees_life=True), 0.0, holds_epoch=True) is Turn.WORK


def test_standby_waits_until_all_heartbeats_were_read_then_takes_over_where_there_never_was_one():
    duty = Duty(sees_life=True)
    assert look(duty, 1000.0) is Turn.STAND_BY
    duty.hear_all(1000.0)
    assert look(duty, 1000.0) is Turn.TAKE_OVER


def test_standby_takes_over_when_the_other_was_silent_for_the_stated_time_and_not_before():
    duty = Duty(sees_life=True)
    duty.hear(100.0)
    duty.hear_all(100.0)
    assert look(duty, 100.0 + TAKE_OVER_S - 0.1) is Turn.STAND_BY
    duty.hear(110.0)
    assert look(duty, 100.0 + TAKE_OVER_S + 1) is Turn.STAND_BY
    assert duty.takes_over_in_s(120.0) == TAKE_OVER_S - 10
    assert look(duty, 110.0 + TAKE_OVER_S) is Turn.TAKE_OVER


def test_silence_while_nobody_can_be_heard_does_not_count():
    duty = Duty(sees_life=True)
    duty.hear(0.0)
    duty.hear_all(0.0)
    duty.lose_hearing()
    assert look(duty, 1000.0) is Turn.STAND_BY
    duty.hear_all(1000.0)
    assert look(duty, 1000.0 + TAKE_OVER_S - 1) is Turn.STAND_BY
    assert look(duty, 1000.0 + TAKE_OVER_S) is Turn.TAKE_OVER


def test_signs_that_more_was_read_do_not_end_a_silence():
    duty = Duty(sees_life=True)
    duty.hear(0.0)
    for second in range(int(TAKE_OVER_S)):
        duty.hear_all(float(second))
    assert look(duty, TAKE_OVER_S) is Turn.TAKE_OVER


def test_fenced_publisher_says_so_once_and_stands_by_as_long_as_any_other():
    duty = Duty(sees_life=True)
    duty.hear_all(0.0)
    assert look(duty, 5.0, holds_epoch=True) is Turn.WORK
    assert look(duty, 6.0) is Turn.FENCED
    assert look(duty, 7.0) is Turn.STAND_BY
    assert look(duty, 6.0 + TAKE_OVER_S) is Turn.TAKE_OVER


def test_lost_race_is_a_sign_of_life():
    duty = Duty(sees_life=True)
    duty.hear_all(0.0)
    assert look(duty, 0.0) is Turn.TAKE_OVER
    duty.lose_race(0.0)
    assert look(duty, TAKE_OVER_S - 1) is Turn.STAND_BY
    assert look(duty, TAKE_OVER_S) is Turn.TAKE_OVER


def test_told_to_take_over_it_does_whoever_lives_and_only_once():
    duty = Duty(sees_life=True, told=True)
    duty.hear(0.0)
    assert look(duty, 0.0) is Turn.TAKE_OVER
    assert look(duty, 0.1, holds_epoch=True) is Turn.WORK
    assert look(duty, 0.2) is Turn.FENCED
    assert look(duty, 0.3) is Turn.STAND_BY


def test_without_heartbeats_it_takes_over_at_its_start_and_never_again_once_fenced():
    duty = Duty(sees_life=False)
    assert look(duty, 0.0) is Turn.TAKE_OVER
    assert look(duty, 0.1, holds_epoch=True) is Turn.WORK
    assert look(duty, 0.2) is Turn.FENCED
    assert look(duty, 1e6) is Turn.STAND_BY


def test_without_heartbeats_it_does_not_fight_for_a_race_that_it_lost():
    duty = Duty(sees_life=False)
    assert look(duty, 0.0) is Turn.TAKE_OVER
    duty.lose_race(0.0)
    assert look(duty, 1e6) is Turn.STAND_BY


def test_after_a_farewell_nobody_waits_for_a_silence():
    duty = Duty(sees_life=True)
    duty.hear(0.0)
    duty.hear_all(0.0)
    assert look(duty, 1.0) is Turn.STAND_BY
    duty.hear_farewell(1.0)
    assert look(duty, 1.0) is Turn.TAKE_OVER
    duty.lose_race(1.0)
    assert look(duty, 2.0) is Turn.STAND_BY
