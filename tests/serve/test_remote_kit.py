"""The judge of what an arm was given: it must see what it is there to see."""

from remote_kit import played_twice


def state(chunk_seq, action_index, n_left=5):
    said = {"chunk_seq": chunk_seq, "action_index": action_index, "n_actions_left": n_left}
    return {"type": "state", "mode": "running", "wanted": (0.0,), **said}


def chunk(request_id):
    return {"type": "chunk", "request_id": request_id}


def test_actions_in_order_and_a_last_one_that_is_held_are_no_repetition():
    given = [state(0, 0.0), state(0, 1.5), state(0, 9.0, 0), state(0, 9.0, 0), state(2, 0.5), state(2, 1.0)]
    assert played_twice([chunk(0), *given, chunk(2)]) == []


def test_a_request_that_was_answered_twice_and_an_action_that_came_again_are_told():
    assert played_twice([chunk(4), chunk(5), chunk(4)]) == ["request 4 was answered 2 times"]
    assert played_twice([state(1, 3.0), state(1, 2.0)]) == ["action 2 of chunk 1 came after action 3 of 1"]
    assert len(played_twice([state(1, 3.0), state(2, 0.0), state(1, 4.0)])) == 1
    assert len(played_twice([state(1, 3.0), state(1, 3.0)])) == 1
