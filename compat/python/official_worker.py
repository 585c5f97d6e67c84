"""The official environment worker as a program: BASE_URL ENVIRONMENT_ID KEY_FILE WORKDIR."""

import asyncio
import logging
import sys
from pathlib import Path

from anthropic import AsyncAnthropic


async def main(base_url: str, environment_id: str, key_file: str, workdir: str) -> None:
    # The client's own key is never used: every call of the worker carries the environment key or the item's token.
    async with AsyncAnthropic(base_url=base_url, api_key="unused") as client:
        worker = client.beta.environments.work.worker(
            environment_id=environment_id,
            environment_key=Path(key_file).read_text().strip(),
            workdir=workdir,
            max_idle=1.0,
        )
        print("polling", flush=True)
        await worker.run()


logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
asyncio.run(main(*sys.argv[1:]))
