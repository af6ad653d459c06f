-- Read what is known of live chords; false for each that is not known. Little of it comes as values
-- of their own: clients are slow to read them. A key of another type is named in its chord's
-- answer, and keeps no other chord from being read.
local is_ordered, fields = ARGV[2] == '1', cjson.decode(ARGV[3])

local damage
local function read(command, chord, name, ...)
    local answer = redis.pcall(command, chord .. name, ...)
    if type(answer) == 'table' and answer.err then
        damage = 'its key ' .. name .. ' is a ' .. redis.call('TYPE', chord .. name).ok
        return false
    end
    return answer
end

local records = {}
for index = 4, #ARGV do
    local chord = group .. ARGV[index]
    damage = false
    local known = read('HMGET', chord, '.chordguard', 'header', 'body', unpack(fields))
    local header, body = false, false
    if known then
        header, body = table.remove(known, 1), table.remove(known, 1)
    end
    records[index - 3] = (damage or known[#fields]) and {
        cjson.encode({
            known,
            read(is_ordered and 'ZCARD' or 'LLEN', chord, '.j'),
            read('GET', chord, '.s'),
            read('GET', chord, '.t'),
            read('GET', chord, '.c'),
            redis.call('PTTL', chord .. '.c'),
            damage,
        }),
        header,
        body,
    }
end
return records
