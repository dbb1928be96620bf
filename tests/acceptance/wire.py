"""Between a program and a server: passes on what they say, and counts it.

wire.py PORT SERVER_PORT COUNTS: COUNTS gets two numbers, the bytes to and from the server, whenever they change.
"""
import asyncio
import os
import sys

port, server, counts = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
passed = {"to": 0, "from": 0}


def note():
    with open(counts + ".new", "w") as file:
        print(passed["to"], passed["from"], file=file)
    os.rename(counts + ".new", counts)


async def pass_on(reader, writer, way):
    try:
        while data := await reader.read(1 << 16):
            passed[way] += len(data)
            note()
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def connected(reader, writer):
    to_reader, to_writer = await asyncio.open_connection("127.0.0.1", server)
    await asyncio.gather(pass_on(reader, to_writer, "to"), pass_on(to_reader, writer, "from"))


async def main():
    note()
    async with await asyncio.start_server(connected, "127.0.0.1", port) as listening:
        await listening.serve_forever()


asyncio.run(main())
