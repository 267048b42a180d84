"""A policy that infers elsewhere: the server, and what stands in a bundle's place on the robot.

    robot:   nodes/policy.py -> remote.py -> line.py --- tcp --- door.py -> server.py -> hosted.py -> runner.py : server

The server is a ROUTER around the same sampler. It keeps nothing between requests but who has joined.
"""
