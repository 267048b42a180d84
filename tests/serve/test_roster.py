"""What a policy server tells of its robots to whoever looks."""

from dataclasses import replace

from serve_kit import robot, until

from edgevla import strict
from edgevla.codec import MAX_HEADER_BYTES, encode
from edgevla.descriptions import AboutRobots
from edgevla.messages import Ack, Describe, Header, Message
from edgevla.serve.roster import LATELY


def robots_of(looker):
    looker.tell(Describe({"robots": True}))
    return strict.read(AboutRobots, looker.hear().about).robots


def test_a_robot_is_told_of_from_its_join_until_its_connection_ends(serving, stranger, arm, make_bundle):
    server = serving(make_bundle("act"))
    looker = stranger(server.endpoint)
    assert robots_of(looker) == ()
    remote = arm(server.endpoint, about=robot(name="left arm"))
    for number in range(2 * LATELY):
        remote.ask(number=number, buffered_s=0.25)
    (one,) = robots_of(looker)
    assert (one.robot, one.machine, one.policy) == ("left arm", "", server.policies[0].bundle.folder.name)
    assert (one.outcome, one.is_connected, one.is_guided) == ("answered", True, False)
    assert 200 < one.buffered_ms <= 250
    assert one.per_s > 1
    assert 0 <= one.asked_ms <= one.joined_ms
    assert one.answer_ms > 0
    remote.policy.close()
    until(lambda: not len(server.server.door.gate) > 1)
    (gone,) = robots_of(looker)
    assert (gone.id, gone.is_connected) == (one.id, False)


def test_a_list_of_most_robots_with_the_longest_words_is_one_message(serving, stranger, make_bundle):
    server = serving(make_bundle("act"))
    guests = [stranger(server.endpoint, f"guest {n:2}".encode()) for n in range(64)]
    for guest in guests:
        assert guest.join(server, robot(name="机" * 500)).is_accepted
    for robot_there in server.server._robots.values():
        robot_there.is_told("unfit", "字" * 1000)
        robot_there.task = "任" * 1000
    guests[0].tell(Describe({"robots": True}))
    told = strict.read(AboutRobots, guests[0].hear().about)
    assert len(told.robots) == len({one.id for one in told.robots}) == 64
    header = Header(bytes(8), "serve", 0, 0, 0)
    longest = replace(
        told, robots=tuple(replace(one, machine="m" * 64, policy="p" * 64) for one in told.robots)
    )
    assert len(encode(Message(header, Describe(strict.write(longest))))[1]) < MAX_HEADER_BYTES
    guests[0].tell(Describe({"robots": 1}))
    assert isinstance(guests[0].hear(), Ack)
