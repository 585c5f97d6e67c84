// Every operation of agents, environments, sessions and events by its SDK method, and what comes back.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { BadRequestError, NotFoundError } from '@anthropic-ai/sdk';

import { Server, collect, makeAgent, makeEnvironment, message, ofType, textOf, waitIdle } from '../harness.mjs';

let server, client;
before(async () => {
  server = await Server.start();
  ({ client } = server);
});
after(() => server?.stop());

const ids = (list) => list.map((item) => item.id);

test('agents: create, retrieve, update, list, archive', async () => {
  const { agents } = client.beta;
  const made = await agents.create({
    model: { id: 'scripted:greeter', speed: 'standard' },
    name: 'survey',
    description: 'looks around',
    system: 'Be brief.',
    tools: [
      {
        type: 'agent_toolset_20260401',
        default_config: { permission_policy: { type: 'always_ask' } },
        configs: [{ name: 'bash', permission_policy: { type: 'always_allow' } }],
      },
      { type: 'custom', name: 'lookup', description: 'Looks up.', input_schema: { type: 'object', properties: {} } },
    ],
    metadata: { team: 'red', tier: '1' },
  });
  assert.match(made.id, /^agent_/);
  assert.match(made._request_id, /^req_/);
  assert.equal(made.version, 1);
  assert.equal(made.model.id, 'scripted:greeter');
  assert.ok(made.model.effort.type);
  assert.deepEqual(made.execution_identity, { type: 'service_account' });
  assert.equal(made.archived_at, null);
  assert.equal(made.tools[0].default_config.permission_policy.type, 'always_ask');
  assert.deepEqual(made.tools[0].configs.map((it) => [it.name, it.enabled, it.permission_policy.type]), [
    ['bash', true, 'always_allow'],
  ]);
  assert.deepEqual(await agents.retrieve(made.id), made);

  const patched = await agents.update(made.id, { system: null, metadata: { tier: null, site: 'a' }, version: 1 });
  assert.deepEqual(
    [patched.version, patched.system, patched.description, patched.metadata],
    [2, null, 'looks around', { team: 'red', site: 'a' }],
  );
  assert.equal((await agents.update(made.id, { name: 'survey' })).version, 2);
  assert.equal((await agents.retrieve(made.id, { version: 1 })).system, 'Be brief.');
  assert.deepEqual((await agents.update(made.id, { tools: null })).tools, []);

  assert.ok(ids(await collect(agents.list())).includes(made.id));
  const archived = await agents.archive(made.id);
  assert.ok(archived.archived_at);
  assert.ok(!ids(await collect(agents.list())).includes(made.id));
  assert.ok(ids(await collect(agents.list({ include_archived: true }))).includes(made.id));
});

test('agents: versions over several pages', async () => {
  const agent = await client.beta.agents.create({ model: 'scripted:greeter', name: 'v1' });
  for (const number of [2, 3, 4, 5]) await client.beta.agents.update(agent.id, { name: `v${number}` });
  const listed = await collect(client.beta.agents.versions.list(agent.id, { limit: 2 }));
  assert.deepEqual(listed.map((it) => it.version).sort(), [1, 2, 3, 4, 5]);
});

test('environments: create, retrieve, update, list, archive, delete', async () => {
  const { environments } = client.beta;
  const made = await environments.create({
    name: 'field',
    config: { type: 'self_hosted' },
    description: 'd',
    metadata: { a: '1', b: '2' },
  });
  assert.match(made.id, /^env_/);
  assert.deepEqual(made.config, { type: 'self_hosted' });
  assert.deepEqual(await environments.retrieve(made.id), made);
  const patched = await environments.update(made.id, { description: null, metadata: { a: null, b: '', c: '3' } });
  assert.deepEqual([patched.description, patched.metadata, patched.name], [null, { c: '3' }, 'field']);

  const cloud = await environments.create({ name: 'cloud', config: { type: 'cloud' } });
  assert.equal(cloud.config.networking.type, 'unrestricted');
  await assert.rejects(environments.update(cloud.id, { config: { type: 'self_hosted' } }), (why) => {
    assert.ok(why instanceof BadRequestError);
    assert.equal(why.errorCode, 'invalid_config_type_change');
    return true;
  });
  assert.ok(ids(await collect(environments.list())).includes(cloud.id));
  assert.ok((await environments.archive(made.id)).archived_at);
  await assert.rejects(environments.update(made.id, { name: 'again' }), BadRequestError);
  assert.ok(ids(await collect(environments.list({ include_archived: true }))).includes(made.id));
  assert.deepEqual(await environments.delete(cloud.id), { id: cloud.id, type: 'environment_deleted' });
  await assert.rejects(environments.retrieve(cloud.id), NotFoundError);
});

test('sessions: create, retrieve, update, list, archive, delete', async () => {
  const { sessions } = client.beta;
  const environment = await makeEnvironment(client);
  const agent = await makeAgent(client, 'greeter', { system: 'Be brief.' });
  const where = { agent: agent.id, environment_id: environment.id };
  const made = await sessions.create({ ...where, title: 'first', metadata: { k: 'v', gone: 'x' } });
  assert.match(made.id, /^sesn_/);
  assert.equal(made.status, 'idle');
  assert.deepEqual([made.agent.id, made.agent.version, made.agent.system], [agent.id, 1, 'Be brief.']);
  assert.deepEqual([made.resources, made.vault_ids, made.budget, made.archived_at], [[], [], null, null]);
  // Only its age differs from moment to moment.
  assert.deepEqual({ ...(await sessions.retrieve(made.id)), stats: null }, { ...made, stats: null });
  const patched = await sessions.update(made.id, { title: null, metadata: { gone: null, new: 'y' } });
  assert.deepEqual([patched.title, patched.metadata], [null, { k: 'v', new: 'y' }]);

  const overridden = await sessions.create({
    agent: { type: 'agent_with_overrides', id: agent.id, system: null },
    environment_id: environment.id,
  });
  assert.equal(overridden.agent.system, null);
  const pinned = await sessions.create({ ...where, agent: { type: 'agent', id: agent.id, version: 1 } });
  const newestFirst = [pinned.id, overridden.id, made.id];
  assert.deepEqual(ids(await collect(sessions.list({ agent_id: agent.id }))), newestFirst);
  assert.deepEqual(ids(await collect(sessions.list({ agent_id: agent.id, order: 'asc' }))), newestFirst.toReversed());
  assert.deepEqual(await collect(sessions.list({ agent_id: agent.id, statuses: ['running', 'rescheduling'] })), []);

  const archived = await sessions.archive(overridden.id);
  assert.equal(archived.status, 'terminated');
  assert.ok(!ids(await collect(sessions.list({ agent_id: agent.id }))).includes(overridden.id));
  assert.deepEqual(await sessions.delete(pinned.id), { id: pinned.id, type: 'session_deleted' });
  await assert.rejects(sessions.retrieve(pinned.id), NotFoundError);
});

test('events: send, list with its filters, stream', async () => {
  const environment = await makeEnvironment(client);
  const agent = await makeAgent(client, 'greeter');
  const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });
  const { events } = client.beta.sessions;
  const stream = await events.stream(session.id);
  const sent = await events.send(session.id, { events: [message('hello')] });
  assert.equal(sent.data.length, 1);
  assert.match(sent.data[0].id, /^sevt_/);
  const live = [];
  for await (const event of stream) {
    live.push(event);
    if (event.type === 'session.status_idle') break;
  }
  assert.equal(live.at(-2).type, 'session.usage');
  assert.deepEqual(live.at(-1).stop_reason, { type: 'end_turn' });
  assert.equal(live.at(-1).stop_details, null);
  assert.ok(live.filter((it) => it.id === sent.data[0].id).at(-1).processed_at);

  const listed = await collect(events.list(session.id));
  for (const event of live) assert.ok(ids(listed).includes(event.id), `${event.type} was streamed and is not listed`);
  assert.equal(textOf(ofType(listed, 'agent.message')[0]), 'Hello. I am played by a script.');
  assert.deepEqual(ids(await collect(events.list(session.id, { order: 'desc' }))), ids(listed).toReversed());
  const only = await collect(events.list(session.id, { types: ['agent.message', 'user.message'] }));
  assert.deepEqual(only.map((it) => it.type), ['user.message', 'agent.message']);
});

test('initial events start the session', async () => {
  const environment = await makeEnvironment(client);
  const agent = await makeAgent(client, 'greeter');
  const where = { agent: agent.id, environment_id: environment.id };
  const session = await client.beta.sessions.create({ ...where, initial_events: [message('hello')] });
  assert.equal(session.status, 'running');
  assert.equal(ofType(await waitIdle(client, session.id, 'end_turn'), 'agent.message').length, 1);
});
