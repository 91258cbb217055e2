# The SQL of the README runs as it stands there, in a fresh database, from the first block to the last.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my @blocks = slurp_file("$FindBin::RealBin/../../README.md") =~ /^```sql\n(.*?)^```/msg;

cmp_ok(scalar(@blocks), '>', 5, 'the README has blocks of SQL');
$node->safe_psql('postgres', 'CREATE DATABASE reader');

# One session, since later statements use the variables of earlier ones
my ($ret, $stdout, $stderr) = $node->psql('reader', join("\n", @blocks), extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
is($ret, 0, 'it ends well');
is($stderr, '', 'without errors and warnings');

like($stdout, qr/^1\|succeeded\|\{"pages": 12\}\|\n2\|succeeded\|\{"pages": 7\}\|\n3\|failed\|\|gone$/m,
	'what is collected in the first block is what was done there');

$node->stop;
done_testing();
