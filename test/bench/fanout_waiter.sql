-- A worker that waits for what does not come.
SELECT lease FROM fanout.dequeue(:queue, 'waiter-' || :client_id, wait => '1 h');
