"""A process that ends with 0 where a peer fills its queue at a policy server, and hangs up before it is read."""

import sys
import time

import zmq

from edgevla.serve.transport import BEAT_MS, MOST_QUEUED, Address, as_robot, as_server

ctx = zmq.Context()
server, robot = ctx.socket(zmq.ROUTER), ctx.socket(zmq.DEALER)
as_server(server, "tcp://127.0.0.1:0", 1 << 20)
server.bind("tcp://127.0.0.1:0")
endpoint = server.getsockopt_string(zmq.LAST_ENDPOINT)
as_robot(robot, Address(endpoint))
robot.setsockopt(zmq.LINGER, 0)
monitor = server.get_monitor_socket(zmq.EVENT_DISCONNECTED)
robot.connect(endpoint)
for _ in range(20 * MOST_QUEUED):
    robot.send(bytes(10_000))
time.sleep(0.2)
robot.close()
time.sleep(4 * BEAT_MS / 1000)
assert server.recv_multipart()
server.disable_monitor()
ctx.destroy(linger=0)
sys.exit(0)
