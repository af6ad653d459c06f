-- Write the record of a live chord anew, as far as one of its members knows it.
local now, when, lifetime, body = unpack(ARGV, 2)

if redis.call('EXISTS', record) == 1 or not redis.call('ZSCORE', due, group_id) then
    return 0
end
redis.call('HSET', record, 'created', now, 'progressed', now, 'lifetime', lifetime)
redis.call('HSET', record, 'body', body, 'reopened', '1')
local size = number(redis.call('GET', s))
if size then
    redis.call('HSET', record, 'size', size)
end
redis.call('EXPIRE', record, lifetime)
be_due(when)
return 1
