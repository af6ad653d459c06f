-- Tell how far chords are: an answer in JSON for each id, false where nothing is known. An id is that
-- of a chord, or of the result that its body gives. A key of another type is passed over.
local is_ordered, fields = ARGV[2] == '1', cjson.decode(ARGV[3])

local function read(...)
    local answer = redis.pcall(...)
    return not (type(answer) == 'table' and answer.err) and answer
end

local function progress_of(id)
    local chord = KEYS[1] .. id
    local known = read('HMGET', chord .. '.chordguard', unpack(fields))
    if known and known[#fields] then
        return cjson.encode({
            id,
            known,
            read(is_ordered and 'ZCARD' or 'LLEN', chord .. '.j') or 0,
            read('GET', chord .. '.t'),
            read('GET', chord .. '.s'),
            read('GET', chord .. '.c'),
        })
    end
    local ended = read('GET', chord .. '.chordguard-end')
    return ended and cjson.encode({id, cjson.decode(ended)})
end

local answers = {}
for index = 4, #ARGV do
    local answer = progress_of(ARGV[index])
    if not answer then
        local id = read('GET', KEYS[1] .. ARGV[index] .. POINTER)
        answer = id and progress_of(id)
    end
    answers[index - 3] = answer
end
return answers
