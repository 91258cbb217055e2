// graphile-worker as its guide to performance says: a local queue, completions and failures in batches, prepared
// statements, and a pool larger than what runs at a time. It is woken by LISTEN.
import { Logger, makeWorkerUtils, runTaskList, runMigrations } from 'graphile-worker';
import { connect, pool } from '../common.mjs';

export const concurrency = { graphile_worker: 24 };
export const backlog = 5000;

const logger = new Logger(() => (level, message) => { if (level === 'error') console.error(message); });
const preset = (slots, local) => ({
  worker: {
    logger, concurrentJobs: slots, maxPoolSize: Math.max(10, Math.min(slots, 24) + 2), pollInterval: 2000,
    preparedStatements: true, completeJobBatchDelay: 0, failJobBatchDelay: 0, localQueue: { size: local },
  },
});

export async function setup() {
  await runMigrations({ pgPool: pool(2), logger });
}

export async function producer() {
  const pgPool = pool(4);
  const utils = await makeWorkerUtils({ pgPool, logger });
  const db = await connect();
  return {
    enqueue: (jobs) => utils.addJobs(jobs.map((payload) => ({ identifier: 'job', payload }))),
    enqueueOne: (job) => utils.addJob('job', job),
    async unfinished() {
      return (await db.query(`SELECT count(*)::int AS n FROM graphile_worker._private_jobs`)).rows[0].n;
    },
    async close() { await utils.release(); await db.end(); await pgPool.end(); },
  };
}

export async function worker({ handle, slots }) {
  const pgPool = pool(Math.max(10, Math.min(slots, 24) + 2));
  const workers = runTaskList({ pgPool, preset: preset(slots, 500) }, { job: async (payload) => { handle(payload); } }, pgPool);
  return { stop: () => workers.gracefulShutdown('done') };
}
