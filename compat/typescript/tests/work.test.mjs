// The raw work queue, served by a hand-written worker: every operation of `environments.work`.

import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';

import { BadRequestError, ConflictError, NotFoundError, PermissionDeniedError } from '@anthropic-ai/sdk';
import { BetaHeartbeatPreconditionFailedError } from '@anthropic-ai/sdk/resources/beta/environments/work';
import { sessionsTokenFromSecret } from '@anthropic-ai/sdk/lib/environments/worker';

import {
  Server,
  collect,
  eventually,
  history,
  makeEnvironment,
  ofType,
  startSession,
  textOf,
  waitIdle,
} from '../harness.mjs';

let server, client, environment, session, worker;
before(async () => {
  server = await Server.start('--lease-ttl', '10');
  ({ client } = server);
});
after(() => server?.stop());
beforeEach(async () => {
  environment = await makeEnvironment(client);
  session = await startSession(client, environment.id, 'hands');
  await waitIdle(client, session.id, 'requires_action');
  worker = await server.workerClient(environment.id);
});

const poll = () =>
  worker.beta.environments.work.poll(environment.id, { block_ms: 500, 'Anthropic-Worker-ID': 'hand-made' });
const claim = () => eventually(poll, 'a work item');

test('a custom worker: poll, ack, heartbeat, list, retrieve, update, stats, stop', async () => {
  const { work } = worker.beta.environments;
  const administration = client.beta.environments.work;
  const where = { environment_id: environment.id };
  assert.equal((await administration.stats(environment.id)).depth, 1);
  const item = await claim();
  assert.deepEqual([item.type, item.state, item.data], ['work', 'queued', { type: 'session', id: session.id }]);
  assert.equal((await administration.stats(environment.id)).workers_polling, 1);
  assert.equal(await work.poll(environment.id), null, 'an empty poll is null');
  const acked = await work.ack(item.id, where);
  assert.deepEqual([acked.id, acked.state, acked.secret], [item.id, 'starting', null]);

  // From here on with the item's own token, as the official workers do.
  const hands = server.connect({ apiKey: null, authToken: sessionsTokenFromSecret(item.secret) });
  const leased = hands.beta.environments.work;
  const beat = await leased.heartbeat(item.id, { ...where, expected_last_heartbeat: 'NO_HEARTBEAT' });
  assert.deepEqual([beat.type, beat.lease_extended, beat.state], ['work_heartbeat', true, 'active']);
  const again = await leased.heartbeat(item.id, { ...where, expected_last_heartbeat: beat.last_heartbeat });
  assert.equal(again.lease_extended, true);

  const [call] = ofType(await history(hands, session.id), 'agent.tool_use');
  await hands.beta.sessions.events.send(session.id, {
    events: [{ type: 'user.tool_result', tool_use_id: call.id, content: [{ type: 'text', text: 'handy' }] }],
  });
  const events = await waitIdle(client, session.id, 'end_turn');
  assert.ok(textOf(ofType(events, 'agent.message').at(-1)).includes('handy'));

  assert.deepEqual(
    (await administration.update(item.id, { ...where, metadata: { host: 'a', zone: 'b' } })).metadata,
    { host: 'a', zone: 'b' },
  );
  assert.deepEqual((await administration.update(item.id, { ...where, metadata: { zone: null } })).metadata, { host: 'a' });
  assert.equal((await administration.retrieve(item.id, where)).state, 'active');
  assert.deepEqual((await collect(work.list(environment.id))).map((it) => it.id), [item.id]);
  assert.equal((await administration.stop(item.id, where)).state, 'stopping');
  assert.equal((await leased.heartbeat(item.id, { ...where, expected_last_heartbeat: 'x' })).state, 'stopping');
  assert.equal((await leased.stop(item.id, { ...where, force: true })).state, 'stopped');

  const counting = server.counting();
  const stopping = counting.client.beta.environments.work.stop(item.id, { ...where, force: true });
  await assert.rejects(stopping, ConflictError);
  assert.equal(counting.requests.length, 1, 'x-should-retry: false keeps the SDK from trying again');
});

test('412 is the typed error of a heartbeat, with the state that the server holds', async () => {
  const item = await claim();
  const { work } = worker.beta.environments;
  const where = { environment_id: environment.id };
  await work.ack(item.id, where);
  const beat = await work.heartbeat(item.id, { ...where, expected_last_heartbeat: 'NO_HEARTBEAT' });
  await assert.rejects(work.heartbeat(item.id, { ...where, expected_last_heartbeat: 'NO_HEARTBEAT' }), (why) => {
    assert.ok(why instanceof BetaHeartbeatPreconditionFailedError, why.constructor.name);
    const { current_state: state, error_code: code } = why.details;
    assert.equal(code, 'heartbeat_precondition_failed');
    assert.deepEqual([state.state, state.lease_extended, state.ttl_seconds], ['active', false, beat.ttl_seconds]);
    return true;
  });
});

test('who may do what', async () => {
  const item = await claim();
  const where = { environment_id: environment.id };
  await worker.beta.environments.work.ack(item.id, where);
  await assert.rejects(worker.beta.environments.work.retrieve(item.id, where), PermissionDeniedError);
  await assert.rejects(worker.beta.environments.work.poll(environment.id, { block_ms: 0 }), BadRequestError);
  const hands = server.connect({ apiKey: null, authToken: sessionsTokenFromSecret(item.secret) });
  assert.equal((await hands.beta.sessions.retrieve(session.id)).id, session.id);
  const other = await startSession(client, environment.id, 'greeter');
  await assert.rejects(hands.beta.sessions.retrieve(other.id), NotFoundError);
  const elsewhere = await makeEnvironment(client);
  await assert.rejects(worker.beta.environments.work.poll(elsewhere.id), NotFoundError);
});
