-- Forget a chord that has ended. Parts that come twice, and late, find that it is done, for
-- `done_seconds`; given its key, the structure of its results goes, too.
local j, t, s, d, c, record, due, group = unpack(KEYS)
local group_id, done_seconds, is_marked = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'

if done_seconds > 0 and (redis.call('EXISTS', record) == 1 or is_marked) then
    redis.call('SET', c, 'done', 'EX', done_seconds)
elseif done_seconds == 0 or redis.call('GET', c) ~= 'done' then
    redis.call('DEL', c)
end
redis.call('ZREM', due, group_id)
if group then
    redis.call('DEL', group)
end
return redis.call('DEL', j, t, s, d, record)
