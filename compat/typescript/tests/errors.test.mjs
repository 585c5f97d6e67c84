// Typed errors, and that the SDK's retries are steered as they should be.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import {
  APIError,
  AuthenticationError,
  BadRequestError,
  ConflictError,
  ContentTooLargeError,
  NotFoundError,
  PermissionDeniedError,
} from '@anthropic-ai/sdk';

import { Server, collect, makeAgent, makeEnvironment, message } from '../harness.mjs';

let server, client;
before(async () => {
  server = await Server.start();
  ({ client } = server);
});
after(() => server?.stop());

/** The error with which this fails, which must be of this class. */
async function refusal(promise, kind) {
  let refused;
  await assert.rejects(
    async () => promise,
    (why) => {
      refused = why;
      assert.ok(why instanceof kind, `got ${why?.constructor?.name}: ${why?.message}`);
      return true;
    },
  );
  return refused;
}

test('404 is NotFoundError with the request id', async () => {
  const { beta } = client;
  const tail = '011CZkYpogX7uDKUyvBTophP';
  for (const call of [
    () => beta.agents.retrieve(`agent_${tail}`),
    () => beta.sessions.retrieve(`sesn_${tail}`),
    () => beta.environments.retrieve(`env_${tail}`),
    () => beta.sessions.events.send(`sesn_${tail}`, { events: [message('x')] }),
    () => beta.sessions.events.stream(`sesn_${tail}`),
    () => beta.agents.retrieve('not an id/at all'),
  ]) {
    const why = await refusal(call(), NotFoundError);
    assert.equal(why.type, 'not_found_error');
    assert.match(why.requestID, /^req_/);
    assert.equal(why.error.request_id, why.requestID);
  }
});

test('409 is ConflictError, tried once', async () => {
  const counting = server.counting();
  const agent = await counting.client.beta.agents.create({ model: 'scripted:greeter', name: 'locked' });
  counting.requests.length = 0;
  const why = await refusal(counting.client.beta.agents.update(agent.id, { name: 'x', version: 9 }), ConflictError);
  assert.equal(why.headers.get('x-should-retry'), 'false');
  assert.equal(counting.requests.length, 1);
});

test('400 names the field', async () => {
  const model = 'scripted:greeter';
  for (const [body, named] of [
    [{ model }, 'name'],
    [{ name: 'x' }, 'model'],
    [{ model, name: 7 }, 'name'],
    [{ model, name: 'x', colour: 'red' }, 'colour'],
    [{ model, name: 'x', tools: [{ type: 'agent_toolset_19990101' }] }, 'tools'],
    [{ model, name: 'x', metadata: { k: 1 } }, 'metadata'],
  ]) {
    const why = await refusal(client.beta.agents.create(body), BadRequestError);
    assert.equal(why.type, 'invalid_request_error');
    assert.ok(why.error.error.message.includes(named), why.message);
  }
  await refusal(client.beta.agents.list({ page: 'no such page' }), BadRequestError);
});

test('401 and 403 are told apart', async () => {
  const why = await refusal(server.connect({ apiKey: 'sk-ant-api03-wrong' }).beta.agents.list(), AuthenticationError);
  assert.equal(why.type, 'authentication_error');
  const environment = await makeEnvironment(client);
  const worker = await server.workerClient(environment.id);
  assert.equal((await refusal(worker.beta.agents.list(), PermissionDeniedError)).type, 'permission_error');
});

test('413 for a body beyond 32 MB', async () => {
  const environment = await makeEnvironment(client);
  const agent = await makeAgent(client, 'greeter');
  const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });
  const much = message('x'.repeat(33 * 1024 * 1024));
  const why = await refusal(client.beta.sessions.events.send(session.id, { events: [much] }), APIError);
  assert.ok(why instanceof ContentTooLargeError, `got ${why.constructor.name}: ${why.message}`);
});

test('one bad event refuses all', async () => {
  const environment = await makeEnvironment(client);
  const agent = await makeAgent(client, 'greeter');
  const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });
  const bad = { type: 'user.custom_tool_result', custom_tool_use_id: 'sevt_011CZkYpogX7uDKUyvBTophP' };
  const sending = client.beta.sessions.events.send(session.id, { events: [message('good'), bad] });
  await refusal(sending, BadRequestError);
  assert.deepEqual(await collect(client.beta.sessions.events.list(session.id, { types: ['user.message'] })), []);
});
