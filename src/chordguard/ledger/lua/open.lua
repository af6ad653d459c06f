-- Start to count a chord. Applied again, a frozen one has the same id.
-- Its size comes along where Celery does not tell it later.
local now, when, lifetime, header, body, signatures, size, body_id, total = unpack(ARGV, 2)

if redis.call('GET', c) == 'done' then
    redis.call('DEL', j) -- the parts of one that has failed
end
redis.call('DEL', c, record, kept)
redis.call('HSET', record, 'created', now, 'progressed', now, 'lifetime', lifetime)
local known = {
    header = header, body = body, signatures = signatures, body_id = body_id, total = total,
}
for name, value in pairs(known) do
    if value ~= '' then
        redis.call('HSET', record, name, value)
    end
end
if size ~= '' then
    redis.call('HSET', record, 'size', size)
    redis.call('SET', s, size, 'EX', lifetime)
end
if body_id ~= '' then
    redis.call('SET', KEYS[1] .. body_id .. POINTER, group_id, 'EX', LONGEST_SECONDS)
end
redis.call('EXPIRE', record, lifetime)
-- A worker without the patches deletes it with the parts and the size, and never without them: where
-- it is there and they are not, the store has lost them.
redis.call('INCRBY', t, 0)
redis.call('EXPIRE', t, lifetime)
be_due(when)
return 1
