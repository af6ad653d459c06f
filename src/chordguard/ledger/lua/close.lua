-- Forget a chord that has ended. Parts that come twice, and late, find that it is done.
local j, t, s, d, c, record, due = unpack(KEYS)
local group_id, done_seconds, is_marked = ARGV[1], ARGV[2], ARGV[3] == '1'

if redis.call('EXISTS', record) == 1 or is_marked then
    redis.call('SET', c, 'done', 'EX', done_seconds)
elseif redis.call('GET', c) ~= 'done' then
    redis.call('DEL', c)
end
redis.call('ZREM', due, group_id)
return redis.call('DEL', j, t, s, d, record)
