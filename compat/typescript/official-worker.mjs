// The official environment worker as a program: BASE_URL ENVIRONMENT_ID KEY_FILE WORKDIR.

import { readFile } from 'node:fs/promises';

import Anthropic from '@anthropic-ai/sdk';

const [baseURL, environmentId, keyFile, workdir] = process.argv.slice(2);
// The client's own key is never used: every call of the worker carries the environment key or the item's token.
const client = new Anthropic({ baseURL, apiKey: 'unused', logLevel: 'info' });
const environmentKey = (await readFile(keyFile, 'utf8')).trim();
const ending = new AbortController();
process.once('SIGTERM', () => ending.abort());
console.log('polling');
await client.beta.environments.work
  .worker({ environmentId, environmentKey, workdir, maxIdleMs: 1000, signal: ending.signal })
  .run();
