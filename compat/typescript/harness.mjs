// Starts palisade and workers as child processes, and the few moves that every program makes.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import Anthropic from '@anthropic-ai/sdk';

const here = path.dirname(fileURLToPath(import.meta.url));
const scripts = path.join(here, '..', 'scripts');
const binary =
  process.env.PALISADE_BIN ?? path.join(here, '../../target/x86_64-unknown-linux-gnu/release/palisade');

/** How long anything may take that takes milliseconds on an idle machine, in ms. */
export const PATIENCE = 60_000;

/** A child process in its own group, whose output is kept for the message of a failed test. */
export class Child {
  lines = [];
  #watchers = new Set();

  constructor(name, command, args) {
    this.name = name;
    this.process = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    this.ended = new Promise((resolve) => {
      this.process.once('error', (why) => resolve(`${why}`));
      this.process.once('exit', (code, signal) => resolve(`${code ?? signal}`));
    });
    for (const output of [this.process.stdout, this.process.stderr]) {
      createInterface({ input: output }).on('line', (line) => {
        this.lines.push(line);
        for (const watcher of this.#watchers) watcher(line);
      });
    }
  }

  /** The first line that matches; fails when the process ends or stays silent instead. */
  async waitFor(pattern) {
    for (const line of this.lines) if (pattern.test(line)) return pattern.exec(line);
    const timer = new AbortController();
    let watcher;
    try {
      return await Promise.race([
        new Promise((resolve) => {
          watcher = (line) => pattern.test(line) && resolve(pattern.exec(line));
          this.#watchers.add(watcher);
        }),
        this.ended.then((how) => assert.fail(`${this.name} ended with ${how}\n${this.tail()}`)),
        sleep(PATIENCE, undefined, { signal: timer.signal }).then(() =>
          assert.fail(`${this.name} did not print ${pattern}\n${this.tail()}`),
        ),
      ]);
    } finally {
      this.#watchers.delete(watcher);
      timer.abort();
    }
  }

  /** Its last lines. */
  tail() {
    return this.lines.slice(-40).map((line) => `  ${this.name}| ${line}`).join('\n');
  }

  get running() {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  #signal(which) {
    if (this.process.pid === undefined) return;
    try {
      process.kill(-this.process.pid, which);
    } catch (why) {
      if (why.code !== 'ESRCH') throw why;
    }
  }

  /** SIGKILL to it and everything in its group. */
  async kill() {
    this.#signal('SIGKILL');
    await this.ended;
  }

  /** SIGTERM, then SIGKILL when it does not heed it. */
  async stop() {
    if (this.running) {
      this.#signal('SIGTERM');
      await Promise.race([this.ended, sleep(10_000, undefined, { ref: false })]);
    }
    await this.kill();
  }
}

/** A palisade server on loopback with a state directory of its own. */
export class Server {
  static async start(...args) {
    const server = new Server();
    server.directory = await mkdtemp(path.join(tmpdir(), 'palisade-compat-'));
    server.state = path.join(server.directory, 'state');
    const files = (await readdir(scripts)).filter((name) => name.endsWith('.yaml')).sort();
    const registered = files.flatMap((name) => ['--script', path.join(scripts, name)]);
    server.child = new Child('server', binary, [
      ...['server', '--state-dir', server.state, '--listen', '127.0.0.1:0', ...args],
      ...registered,
    ]);
    try {
      [, server.baseURL] = await server.child.waitFor(/listening on (http:\/\/127\.0\.0\.1:\d+)/);
      server.apiKey = (await readFile(path.join(server.state, 'bootstrap.key'), 'utf8')).trim();
    } catch (why) {
      await server.stop();
      throw why;
    }
    server.client = server.connect();
    return server;
  }

  /** A client of the official SDK with its defaults; `options` override them. */
  connect(options = {}) {
    return new Anthropic({ baseURL: this.baseURL, apiKey: this.apiKey, ...options });
  }

  /** A client, and the list to which every request that leaves it is appended. */
  counting(options = {}) {
    const requests = [];
    const client = this.connect({
      ...options,
      fetch: (url, init) => {
        requests.push({ url: `${url}`, init });
        return fetch(url, init);
      },
    });
    return { client, requests };
  }

  /** A fresh key of this environment. */
  async environmentKey(environmentId) {
    const args = ['keys', 'create', '--state-dir', this.state, '--environment', environmentId];
    const { stdout } = await promisify(execFile)(binary, args, { timeout: PATIENCE });
    return stdout.trim().split(/\s+/).at(-1);
  }

  /** A client that holds an environment key instead of an API key. */
  async workerClient(environmentId) {
    return this.connect({ apiKey: null, authToken: await this.environmentKey(environmentId) });
  }

  /** A fresh directory that goes with the server. */
  async scratch() {
    return mkdtemp(path.join(this.directory, 'scratch-'));
  }

  async #key(environmentId, directory) {
    const file = path.join(directory, 'environment.key');
    await writeFile(file, await this.environmentKey(environmentId), { mode: 0o600 });
    return file;
  }

  /** The SDK's own environment worker, in its own process; tools work in `directory/work`. */
  async officialWorker(environmentId, directory) {
    const work = path.join(directory, 'work');
    await mkdir(work, { recursive: true });
    const key = await this.#key(environmentId, directory);
    const program = path.join(here, 'official-worker.mjs');
    return new Child('official worker', process.execPath, [program, this.baseURL, environmentId, key, work]);
  }

  /** Our own worker. */
  async palisadeWorker(environmentId, directory) {
    await mkdir(directory, { recursive: true });
    const key = await this.#key(environmentId, directory);
    return new Child('palisade worker', binary, [
      ...['worker', '--base-url', this.baseURL, '--environment', environmentId],
      ...['--environment-key-file', key, '--state-dir', path.join(directory, 'state')],
    ]);
  }

  async stop() {
    await this.child.stop();
    await rm(this.directory, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
  }
}

/** Looks until there is something to see. */
export async function eventually(look, what, child) {
  const deadline = performance.now() + PATIENCE;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    if (performance.now() > deadline) assert.fail(`not in time: ${what}\n${child?.tail() ?? ''}`);
    await sleep(50);
  }
}

/** Everything an auto-pager yields. */
export async function collect(pager) {
  const all = [];
  for await (const item of pager) all.push(item);
  return all;
}

/** Every event of the session so far. */
export const history = (client, sessionId) => collect(client.beta.sessions.events.list(sessionId));

/** The history once its last status is idle for this reason and it has grown beyond `after` events. */
export async function waitIdle(client, sessionId, reason, { after = 0, child } = {}) {
  try {
    return await eventually(
      async () => {
        const events = await history(client, sessionId);
        const last = events.slice(after).filter((event) => event.type.startsWith('session.status_')).at(-1);
        assert.notEqual(last?.type, 'session.status_terminated');
        return last?.type === 'session.status_idle' && last.stop_reason.type === reason && events;
      },
      `session idle with ${reason}`,
      child,
    );
  } catch (why) {
    const seen = (await history(client, sessionId)).map((event) => `  ${JSON.stringify(event).slice(0, 400)}`);
    throw new Error(`${why.message}\nevents:\n${seen.join('\n')}`);
  }
}

/** The events of this type, in order. */
export const ofType = (events, type) => events.filter((event) => event.type === type);

/** The text blocks of an event's content, joined. */
export const textOf = (event) =>
  (event.content ?? []).filter((block) => block.type === 'text').map((block) => block.text).join('');

/** A user message, as sent. */
export const message = (text) => ({ type: 'user.message', content: [{ type: 'text', text }] });

/** No event twice, all in order of `processed_at`. */
export function assertGapless(events) {
  const ids = events.map((event) => event.id);
  assert.equal(new Set(ids).size, ids.length, `an event is listed twice: ${ids}`);
  const times = events.map((event) => event.processed_at).filter(Boolean).map(Date.parse);
  assert.deepEqual(times, [...times].sort((a, b) => a - b), 'the list is not in the order of processed_at');
}

let count = 0;
/** A fresh self-hosted environment. */
export const makeEnvironment = (client) =>
  client.beta.environments.create({ name: `compat-${++count}`, config: { type: 'self_hosted' } });

/** An agent that a script plays, with the built-in tools unless told otherwise. */
export const makeAgent = (client, script, options = {}) =>
  client.beta.agents.create({
    model: `scripted:${script}`,
    name: `${script}-${++count}`,
    tools: [{ type: 'agent_toolset_20260401' }],
    ...options,
  });

/** A session of a fresh agent in this environment that has its first message. */
export async function startSession(client, environmentId, script, options = {}) {
  const agent = await makeAgent(client, script, options);
  return client.beta.sessions.create({
    agent: agent.id,
    environment_id: environmentId,
    initial_events: [message('begin')],
  });
}
