// pg-boss with batches: a worker fetches up to 500 jobs, goes on at once while batches are full, and completes them with
// one statement. It is woken by LISTEN and NOTIFY.
import { PgBoss } from 'pg-boss';
import { connect } from '../common.mjs';

export const concurrency = { pg_boss: 2 };
export const backlog = 10000;

const start = async (options) => {
  const boss = new PgBoss({ host: process.env.PGHOST, user: process.env.PGUSER, database: process.env.PGDATABASE,
    port: Number(process.env.PGPORT), schedule: false, useListenNotify: true, ...options });
  boss.on('error', (error) => console.error(error));
  await boss.start();
  return boss;
};

export async function setup() {
  const boss = await start({ supervise: true });
  await boss.createQueue('jobs', { notify: true });
  await boss.stop();
}

export async function producer() {
  const boss = await start({ supervise: true, max: 4 });
  const db = await connect();
  return {
    enqueue: (jobs) => boss.insert('jobs', jobs.map((data) => ({ data }))),
    enqueueOne: (job) => boss.send('jobs', job),
    async unfinished() {
      return (await db.query(`SELECT count(*)::int AS n FROM pgboss.job WHERE state < 'completed'`)).rows[0].n;
    },
    async close() { await db.end(); await boss.stop({ graceful: false }); },
  };
}

export async function worker({ handle, slots }) {
  const boss = await start({ supervise: false, max: Math.max(10, Math.min(slots, 20) + 2) });
  await boss.work('jobs', { batchSize: 500, localConcurrency: slots, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 },
    async (jobs) => { for (const job of jobs) handle(job.data); });
  return { stop: () => boss.stop({ graceful: false }) };
}
