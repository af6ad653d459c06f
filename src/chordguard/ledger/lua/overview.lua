-- Read how far chords are, as one JSON list: for each the fields that ARGV[3] names, how many parts
-- were counted, and how many members were added; false for what is not there or cannot be read.
local is_ordered, fields = ARGV[2] == '1', cjson.decode(ARGV[3])

local function read(command, key, ...)
    local answer = redis.pcall(command, key, ...)
    return not (type(answer) == 'table' and answer.err) and answer or false
end

local found = {}
for index = 4, #ARGV do
    local chord = group .. ARGV[index]
    table.insert(found, {
        read('HMGET', chord .. '.chordguard', unpack(fields)),
        read(is_ordered and 'ZCARD' or 'LLEN', chord .. '.j'),
        read('GET', chord .. '.t'),
    })
end
return cjson.encode(found)
