// Workers serve sessions to their end: the official TypeScript one, its replacement after a kill, and ours.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';

import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema';

import {
  Server,
  assertGapless,
  eventually,
  history,
  makeEnvironment,
  ofType,
  startSession,
  textOf,
  waitIdle,
} from '../harness.mjs';

let server, client, environment, directory;
const children = [];
before(async () => {
  server = await Server.start('--lease-ttl', '10');
  ({ client } = server);
});
after(() => server?.stop());
beforeEach(async () => {
  environment = await makeEnvironment(client);
  directory = await server.scratch();
});
afterEach(async () => {
  for (const child of children.splice(0)) await child.stop();
});

async function worker(kind, name) {
  const child = await server[kind](environment.id, path.join(directory, name));
  children.push(child);
  return child;
}

/** The results by the calls' ids; fails when a call has none or two. */
function answers(events) {
  const results = ofType(events, 'user.tool_result');
  const calls = ofType(events, 'agent.tool_use').map((call) => call.id);
  assert.deepEqual(results.map((result) => result.tool_use_id).sort(), calls.sort(), 'one result for each call');
  return new Map(results.map((result) => [result.tool_use_id, result]));
}

/** The session of the script `builder` went as it should. */
function assertBuilt(events) {
  assert.equal(textOf(ofType(events, 'agent.message').at(-1)), 'Built: 42');
  const results = answers(events);
  const calls = ofType(events, 'agent.tool_use');
  assert.deepEqual(calls.map((call) => call.name), ['write', 'bash', 'read']);
  for (const call of calls) assert.ok(!results.get(call.id).is_error, textOf(results.get(call.id)));
  assert.match(textOf(results.get(calls[1].id)), /42/);
  assert.match(textOf(results.get(calls[2].id)), /answer/);
  assertGapless(events);
}

test('the official worker serves one session after the other', async () => {
  const session = await startSession(client, environment.id, 'builder');
  const child = await worker('officialWorker', 'one');
  assertBuilt(await waitIdle(client, session.id, 'end_turn', { child }));
  assert.equal(await readFile(path.join(directory, 'one/work/answer.txt'), 'utf8'), 'answer\n');
  const second = await startSession(client, environment.id, 'builder');
  assertBuilt(await waitIdle(client, second.id, 'end_turn', { child }));
  assert.ok(child.running);
});

test('an official worker that is killed in the middle of a call is replaced', async () => {
  const session = await startSession(client, environment.id, 'sleeper');
  const first = await worker('officialWorker', 'one');
  const mark = path.join(directory, 'one/work/started');
  await eventually(() => existsSync(mark), 'the call has begun', first);
  await first.kill();
  // The orphan of the killed worker waits for its mark to go, and ends.
  await rm(mark);
  const before = await history(client, session.id);
  const [pending] = ofType(before, 'agent.tool_use');
  assert.deepEqual(ofType(before, 'user.tool_result'), []);

  // The new one finds the mark of a first attempt, as in a workspace that both share.
  await mkdir(path.join(directory, 'two/work'), { recursive: true });
  await writeFile(path.join(directory, 'two/work/started'), '');
  const second = await worker('officialWorker', 'two');
  const events = await waitIdle(client, session.id, 'end_turn', { child: second });
  assert.equal(textOf(answers(events).get(pending.id)).trim(), 'second attempt');
  assert.equal(textOf(ofType(events, 'agent.message').at(-1)), 'Survived.');
  assertGapless(events);
});

test('the official worker holds a call until it is confirmed', async () => {
  const tools = [{ type: 'agent_toolset_20260401', default_config: { permission_policy: { type: 'always_ask' } } }];
  const session = await startSession(client, environment.id, 'asker', { tools });
  const child = await worker('officialWorker', 'one');
  const [call] = ofType(await waitIdle(client, session.id, 'requires_action', { child }), 'agent.tool_use');
  await client.beta.sessions.events.send(session.id, {
    events: [{ type: 'user.tool_confirmation', tool_use_id: call.id, result: 'allow' }],
  });
  const events = await waitIdle(client, session.id, 'end_turn', { child });
  assert.equal(textOf(answers(events).get(call.id)).trim(), 'asked');
  assert.equal(textOf(ofType(events, 'agent.message').at(-1)), 'It ran.');
});

test('our worker serves a session', async () => {
  const session = await startSession(client, environment.id, 'builder');
  const child = await worker('palisadeWorker', 'ours');
  assertBuilt(await waitIdle(client, session.id, 'end_turn', { child }));
});

test('the tool runner answers custom tools', async () => {
  const inputSchema = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
  const about = { name: 'get_weather', description: 'The weather of a place.' };
  const session = await startSession(client, environment.id, 'weather', {
    tools: [{ type: 'custom', ...about, input_schema: inputSchema }],
  });
  const tool = betaTool({ ...about, inputSchema, run: ({ city }) => `snow in ${city}` });
  const names = [];
  const runner = client.beta.sessions.events.toolRunner(session.id, { tools: [tool], maxIdleMs: 500 });
  for await (const call of runner) names.push(call.name);
  assert.deepEqual(names, ['get_weather']);
  const events = await waitIdle(client, session.id, 'end_turn');
  assert.match(textOf(ofType(events, 'agent.message').at(-1)), /snow in Oslo/);
});
