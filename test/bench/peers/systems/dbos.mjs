// DBOS: each job is a workflow without steps on a queue. Rows are enqueued in bulk, as its event receivers do; the queue is
// polled ten times as often as by default; pool and concurrency are beyond their defaults as well.
import { DBOS } from '@dbos-inc/dbos-sdk';
import { enqueueWorkflows, prepareEnqueuedWorkflow } from '@dbos-inc/dbos-sdk/eventreceiver';
import { randomUUID } from 'node:crypto';
import { connect } from '../common.mjs';

export const concurrency = { dbos: 200 };
export const backlog = 1000;

let handler = () => null;
const job = DBOS.registerWorkflow(async (args) => handler(args), { name: 'job' });

const launch = async (id, queues) => {
  DBOS.setConfig({ name: 'bench', systemDatabaseUrl: url(), systemDatabasePoolSize: 20, logLevel: 'error', executorID: id,
    applicationVersion: 'bench', listenQueues: queues });
  await DBOS.launch();
};

const url = () => `postgresql://${process.env.PGUSER}@localhost:${process.env.PGPORT}/${process.env.PGDATABASE}` +
  `?host=${encodeURIComponent(process.env.PGHOST)}`;

export async function setup() {
  await launch('setup', ['none']);
  await DBOS.shutdown();
}

export async function producer() {
  await launch('producer', ['none']);
  await DBOS.registerQueue('jobs', { workerConcurrency: concurrency.dbos, minPollingIntervalMs: 100 });
  const db = await connect();
  const enqueue = async (jobs) => {
    const ids = [];
    for (let i = 0; i < jobs.length; i += 1000) {
      const some = await Promise.all(jobs.slice(i, i + 1000).map((args) =>
        prepareEnqueuedWorkflow(job, [args], { queueName: 'jobs', workflowID: randomUUID() })));
      await enqueueWorkflows(some);
      ids.push(...some.map((one) => one.workflowUUID));
    }
    return ids;
  };
  return {
    enqueue,
    enqueueOne: (one) => DBOS.startWorkflow(job, { queueName: 'jobs' })(one),
    async fanOut(jobs) {
      const ids = await enqueue(jobs);
      await DBOS.waitAll(ids.map((id) => DBOS.retrieveWorkflow(id)), { pollingIntervalMs: 100 });
      const outputs = new Map();
      for (let i = 0; i < ids.length; i += 1000)
        for (const status of await DBOS.listWorkflows({ workflowIDs: ids.slice(i, i + 1000), loadOutput: true }))
          outputs.set(status.workflowID, status.output);
      return ids.map((id) => outputs.get(id));
    },
    async unfinished() {
      return (await db.query(`SELECT count(*)::int AS n FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')`))
        .rows[0].n;
    },
    async close() { await db.end(); await DBOS.shutdown(); },
  };
}

export async function worker({ handle, id }) {
  handler = handle;
  await launch(`worker-${id}`, ['jobs']);
  return { stop: () => DBOS.shutdown() };
}
