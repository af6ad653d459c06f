-- Forget a chord that has ended. Parts that come twice, and late, find that it is done, for
-- `done_seconds`; for `is_forgotten` the structure of its results goes, too. Of a chord that
-- `has_failed` the parts can be read for as long, as with Celery.
local done_seconds, is_marked, is_forgotten = tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
local has_failed = ARGV[5] == '1'

if done_seconds > 0 and (redis.call('EXISTS', record) == 1 or is_marked) then
    redis.call('SET', c, 'done', 'EX', done_seconds)
elseif done_seconds == 0 or redis.call('GET', c) ~= 'done' then
    redis.call('DEL', c)
end
redis.call('ZREM', due, group_id)
if is_forgotten then
    redis.call('DEL', group)
end
if has_failed and redis.call('GET', c) == 'done' then
    redis.call('EXPIRE', j, done_seconds)
    return redis.call('DEL', t, s, d, record)
end
return redis.call('DEL', j, t, s, d, record)
