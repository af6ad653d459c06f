-- Ask whether the other scripts may do what they do to a chord; nothing is changed by it. Return
-- which commands are refused; raise what would be raised by a write.
local is_ordered = ARGV[2] == '1'
local add, length = 'RPUSH', 'LLEN'
local add_arguments = {'part'}
if is_ordered then
    add, length = 'ZADD', 'ZCARD'
    add_arguments = {'0', 'part'}
end
local commands = {
    {'HSET', record, 'field', 'value'},
    {'HMGET', record, 'field'},
    {'EXISTS', record},
    {'EXPIRE', record, '1'},
    {'DEL', record},
    {'ZADD', due, '0', group_id},
    {'ZREM', due, group_id},
    {'ZRANGEBYSCORE', due, '0', '1'},
    {'MGET', c, s, t},
    {add, j, unpack(add_arguments)},
    {length, j},
    {'INCRBY', t, '1'},
    {'SET', s, '1'},
    {'SADD', d, 'part'},
    {'SET', c, 'token'},
    {'DEL', j, t, s, d, c},
    {'EXPIRE', group, '1'},
}

local refused = {}
-- From Redis 7 on.
if redis.acl_check_cmd then
    for _, command in ipairs(commands) do
        if not redis.acl_check_cmd(unpack(command)) then
            table.insert(refused, command[1] .. ' ' .. command[2])
        end
    end
end
-- Nothing is written to a key that is not there.
local written = redis.pcall('SETRANGE', record, 0, '')
if #refused == 0 and type(written) == 'table' and written.err then
    if not string.find(written.err, 'user executing', 1, true) then
        return written
    end
end
return refused
