-- One task in, one task out; one of a hundred fails at first, and one of a thousand calls is a fan-out of ten.
\set dice random(1, 1000)
\if :dice = 1
SELECT fanout.fan_out('soak', 'page', array_fill(:args::jsonb, '{10}'));
SELECT count(fanout.complete(lease, '{"pages": 12}')) FROM fanout.dequeue('soak', :client_id, max_tasks => 10);
\else
SELECT fanout.enqueue('soak', 'page', :args);
SELECT lease FROM fanout.dequeue('soak', :client_id) \gset
\if :dice <= 10
SELECT fanout.fail(:lease::bigint, 'no luck', retry_in => '0', final => :dice <= 5);
\else
SELECT fanout.complete(:lease::bigint, '{"pages": 12}');
\endif
\endif
