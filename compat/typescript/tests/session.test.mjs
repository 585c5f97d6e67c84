// Whole sessions: streams with previews, confirmations, custom tools, interrupts, pages.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { BadRequestError } from '@anthropic-ai/sdk';
import { accumulateManagedAgentsEvent } from '@anthropic-ai/sdk/lib/sessions/accumulate';

import {
  Server,
  assertGapless,
  collect,
  history,
  makeAgent,
  makeEnvironment,
  message,
  ofType,
  startSession,
  textOf,
  waitIdle,
} from '../harness.mjs';

const ASK = [{ type: 'agent_toolset_20260401', default_config: { permission_policy: { type: 'always_ask' } } }];
const WEATHER = [
  {
    type: 'custom',
    name: 'get_weather',
    description: 'The weather of a place.',
    input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
];

let server, client, environment;
before(async () => {
  server = await Server.start();
  ({ client } = server);
  environment = await makeEnvironment(client);
});
after(() => server?.stop());

const start = (script, options) => startSession(client, environment.id, script, options);
const send = (session, ...events) => client.beta.sessions.events.send(session.id, { events });
const idle = (session, reason, options) => waitIdle(client, session.id, reason, options);

async function greeter() {
  const agent = await makeAgent(client, 'greeter');
  return client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });
}

test('previews add up to the final event', async () => {
  const session = await greeter();
  const stream = await client.beta.sessions.events.stream(session.id, { event_deltas: ['agent.message'] });
  await send(session, message('hello'));
  let snapshot;
  let final;
  let deltas = 0;
  for await (const event of stream) {
    const previous = snapshot;
    snapshot = accumulateManagedAgentsEvent(snapshot, event);
    if (event.type === 'event_delta') deltas += 1;
    if (event.type === 'agent.message') {
      final = event;
      assert.equal(previous.id, event.id);
      assert.ok(textOf(previous) && textOf(event).startsWith(textOf(previous)));
    }
    if (event.type === 'session.status_idle') break;
  }
  assert.ok(deltas >= 1);
  assert.deepEqual(snapshot, final);
  const listed = await history(client, session.id);
  assert.equal(ofType(listed, 'event_delta').length + ofType(listed, 'event_start').length, 0);
  assertGapless(listed);
  await assert.rejects(
    async () => client.beta.sessions.events.stream(session.id, { event_deltas: ['agent.tool_use'] }),
    BadRequestError,
  );
});

test('a call that is allowed', async () => {
  const session = await start('asker', { tools: ASK });
  const events = await idle(session, 'requires_action');
  const [call] = ofType(events, 'agent.tool_use');
  assert.deepEqual([call.evaluated_permission, call.evaluation.type], ['ask', 'always_ask']);
  assert.deepEqual(events.at(-1).stop_reason.event_ids, [call.id]);
  await assert.rejects(send(session, message('are you there?')), BadRequestError);
  await send(session, { type: 'user.tool_confirmation', tool_use_id: call.id, result: 'allow' });
  await send(session, { type: 'user.tool_result', tool_use_id: call.id, content: [{ type: 'text', text: 'asked' }] });
  const after = await idle(session, 'end_turn');
  assert.equal(textOf(ofType(after, 'agent.message').at(-1)), 'It ran.');
  assertGapless(after);
});

test('a call that is denied', async () => {
  const session = await start('asker', { tools: ASK });
  const [call] = ofType(await idle(session, 'requires_action'), 'agent.tool_use');
  await send(session, {
    type: 'user.tool_confirmation',
    tool_use_id: call.id,
    result: 'deny',
    deny_message: 'not on a Sunday',
  });
  const events = await idle(session, 'end_turn');
  assert.equal(textOf(ofType(events, 'agent.message').at(-1)), 'It was refused.');
  const [result] = ofType(events, 'agent.tool_result');
  assert.ok(result.is_error && result.tool_use_id === call.id && textOf(result).includes('not on a Sunday'));
  assertGapless(events);
});

test('a custom tool', async () => {
  const session = await start('weather', { tools: WEATHER });
  const [call] = ofType(await idle(session, 'requires_action'), 'agent.custom_tool_use');
  assert.deepEqual([call.name, call.input], ['get_weather', { city: 'Oslo' }]);
  await send(session, {
    type: 'user.custom_tool_result',
    custom_tool_use_id: call.id,
    content: [{ type: 'text', text: 'snow' }],
  });
  const events = await idle(session, 'end_turn');
  assert.ok(textOf(ofType(events, 'agent.message').at(-1)).includes('snow'));
  assertGapless(events);
});

test('partial answers ask again', async () => {
  const session = await start('two_calls', { tools: WEATHER });
  const events = await idle(session, 'requires_action');
  const calls = ofType(events, 'agent.custom_tool_use').map((event) => event.id);
  assert.deepEqual(events.at(-1).stop_reason.event_ids, calls);
  const answer = (id) => ({ type: 'user.custom_tool_result', custom_tool_use_id: id, content: [] });
  await send(session, answer(calls[1]));
  const again = await idle(session, 'requires_action', { after: events.length });
  assert.deepEqual(again.at(-1).stop_reason.event_ids, [calls[0]]);
  await send(session, answer(calls[0]));
  assertGapless(await idle(session, 'end_turn'));
});

test('an interrupt closes the pending call', async () => {
  const session = await start('hands');
  const events = await idle(session, 'requires_action');
  const [call] = ofType(events, 'agent.tool_use');
  await send(session, { type: 'user.interrupt' });
  const after = await idle(session, 'end_turn', { after: events.length });
  const [result] = ofType(after, 'agent.tool_result');
  assert.ok(result.is_error && result.tool_use_id === call.id);
  await send(session, { type: 'user.tool_result', tool_use_id: call.id, content: [] });
  assert.equal((await client.beta.sessions.retrieve(session.id)).status, 'idle');
  assertGapless(after);
});

test('the auto-pager reads every page of agents, sessions and events', async () => {
  const agent = await makeAgent(client, 'greeter');
  const made = [];
  for (let number = 0; number < 5; number += 1) {
    made.push(await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id }));
  }
  const wanted = made.map((session) => session.id).toReversed();
  const first = await client.beta.sessions.list({ agent_id: agent.id, limit: 2 });
  assert.equal(first.prev_page, null);
  const read = [];
  for await (const page of first.iterPages()) read.push(page);
  assert.deepEqual(read.map((page) => page.data.map((it) => it.id)), [wanted.slice(0, 2), wanted.slice(2, 4), wanted.slice(4)]);
  assert.equal(read.at(-1).next_page, null);

  const versions = await collect(client.beta.agents.list({ limit: 1 }));
  assert.equal(new Set(versions.map((it) => it.id)).size, versions.length);
  assert.ok(versions.some((it) => it.id === agent.id));

  await send(made[0], message('hello'));
  const whole = (await idle(made[0], 'end_turn')).map((event) => event.id);
  const paged = await collect(client.beta.sessions.events.list(made[0].id, { limit: 2 }));
  assert.deepEqual(paged.map((event) => event.id), whole);
  const back = await collect(client.beta.sessions.events.list(made[0].id, { limit: 2, order: 'desc' }));
  assert.deepEqual(back.map((event) => event.id), whole.toReversed());
});

test('deleting a session ends its streams', async () => {
  const session = await greeter();
  const stream = await client.beta.sessions.events.stream(session.id);
  await client.beta.sessions.delete(session.id);
  assert.equal((await collect(stream)).at(-1).type, 'session.deleted');
});
