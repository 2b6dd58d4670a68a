package main

import (
	"container/list"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hamba/avro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

type increment struct {
	Namespace string  `avro:"namespace"`
	Key       string  `avro:"key"`
	Delta     int64   `avro:"delta"`
	At        int64   `avro:"at"`
	ID        *string `avro:"id"`
}

type message struct {
	ID         *string     `avro:"id"`
	Increments []increment `avro:"increments"`
}

const id = `{"name": "id", "type": ["null", "string"], "default": null}`
const single = `{"type": "record", "name": "Increment", "fields": [
	{"name": "namespace", "type": "string"}, {"name": "key", "type": "string"},
	{"name": "delta", "type": "long"}, {"name": "at", "type": "long"}, ` + id + `]}`

var (
	batch = avro.MustParse(`{"type": "record", "name": "IncrementBatch", "fields": [` + id + `,
		{"name": "increments", "type": {"type": "array", "items": ` + single + `}}]}`)
	unlimited = avro.WithReaderConfig(avro.Config{MaxByteSliceSize: -1}.Freeze())
	aliases   = regexp.MustCompile(`"aliases"\s*:\s*\[[^\]]*\]`)
)

type writer struct { // How to read the messages of one schema.
	schema  avro.Schema
	isBatch bool
	err     error
}

type amount struct { // The sum is high * 2^32 + low, and low is less than 2^32.
	high, events int64
	low          uint64
}

func (a *amount) add(high int64, low uint64, events int64) {
	a.low += low & math.MaxUint32
	a.high += high + int64(low>>32) + int64(a.low>>32)
	a.low &= math.MaxUint32
	a.events += events
}

func (a *amount) sum() *big.Int {
	sum := new(big.Int).Lsh(big.NewInt(a.high), 32)
	return sum.Add(sum, big.NewInt(int64(a.low)))
}

// cell has what the log comes to for a counter in a bucket, and what ClickHouse has.
type cell struct{ log, stored amount }

type partition struct {
	writers map[uint32]*writer
	reader  *avro.Reader
	message message
	// How far ClickHouse has it, and its batches; what each row of the ledger comes to.
	position, batches int64
	ledger            map[string]*amount
	account           map[string]int
	cells             []cell
	rows              int
	at                map[string]int   // Where each is, by its name.
	name              []byte           // A buffer for one.
	rejections        map[int64]string // The reasons, by offset.
	// The remembered ids: where each is in `recent`, which has the one seen last at its back.
	ids    map[identity]*list.Element
	recent *list.List
	unread map[uint32]bool // The schemas that messages were rejected for.
	doubt  string          // Why nothing can be said of the partition.
	found  []string
}

type identity struct{ namespace, key, id string }

type sighting struct {
	of     identity
	offset int64
}

type partitions map[int32]*partition

func (all partitions) get(number int32) *partition {
	if all[number] == nil {
		p := &partition{reader: avro.NewReader(nil, 0, unlimited), recent: list.New(),
			writers: map[uint32]*writer{}, account: map[string]int{},
			rejections: map[int64]string{}, ids: map[identity]*list.Element{},
			unread: map[uint32]bool{}, ledger: map[string]*amount{}}
		for _, key := range []string{"deltas", "increments", "messages.counted",
			"messages.duplicate", "messages.rejected", "increments.counted"} {
			p.ledger[key] = &amount{}
		}
		all[number] = p
	}
	return all[number]
}

// cellOf returns the cell of a counter in a bucket, until the next one is asked for. Its name is
// the bucket, the namespace's length, the namespace and the key.
func cellOf[T string | []byte](p *partition, namespace, key T, bucket uint32) *cell {
	p.name = binary.BigEndian.AppendUint32(p.name[:0], bucket)
	p.name = binary.AppendUvarint(p.name, uint64(len(namespace)))
	p.name = append(append(p.name, namespace...), key...)
	at, isKnown := p.at[string(p.name)]
	if !isKnown {
		at, p.cells = len(p.cells), append(p.cells, cell{})
		p.at[string(p.name)] = at
	}
	return &p.cells[at]
}

func (p *partition) find(format string, values ...any) {
	p.found = append(p.found, fmt.Sprintf(format, values...))
}

func (p *partition) whyUnreadable(starts, ends int64) string {
	switch {
	case starts > 0:
		return fmt.Sprintf("the log begins at offset %d, what was before it is gone", starts)
	case p.position > ends:
		return fmt.Sprintf("the log goes to offset %d only", ends)
	case p.position == 0 && ends > 0:
		return fmt.Sprintf("ClickHouse has no ledger of it, the log goes to offset %d", ends)
	}
	return ""
}

// take judges the next message, and counts it.
func (p *partition) take(r *kgo.Record) {
	said, why, schema := p.rejections[r.Offset], "not_framed", uint32(0)
	if len(r.Value) >= 5 && r.Value[0] == 0 {
		schema, why = binary.BigEndian.Uint32(r.Value[1:]), ""
	}
	if said == "unknown_schema" || said == "incompatible_schema" {
		// Nobody knows what the registry knew then, so this is believed.
		p.account["messages.rejected"]++
		p.unread[schema] = true
		return
	}
	if why == "" {
		why = p.decode(schema, r.Value[5:])
	}
	m := &p.message
	if why == "" {
		why = judge(m, r.Timestamp)
	}
	if why == "" && said == "overflow" && rules.idsWithin == "partition" {
		p.remember(m, r.Offset)
		why = said
	}
	if why != "" {
		if p.account["messages.rejected"]++; said == "" {
			p.find("offset %d cannot be counted, %s, but was not rejected", r.Offset, why)
		}
		return
	} else if said != "" {
		p.find("offset %d was rejected as %s, but it counts", r.Offset, said)
	}
	if len(p.unread) > 64 {
		p.doubt = "of more than 64 schemas nothing is known, nor which ids are remembered"
	}
	isRepeated, isDuplicate := p.remember(m, r.Offset)
	if isDuplicate {
		p.account["messages.duplicate"]++
		return
	}
	p.account["messages.counted"]++
	for i := range m.Increments {
		if one := &m.Increments[i]; !isRepeated[i] {
			bucket := one.At / 1000 / rules.bucketSeconds * rules.bucketSeconds
			high, low := one.Delta>>32, uint64(one.Delta)&math.MaxUint32
			cellOf(p, one.Namespace, one.Key, uint32(bucket)).log.add(high, low, 1)
			p.account["increments.counted"]++
		}
	}
}

// decode reads a message by the schema of its writer, or returns why it cannot.
func (p *partition) decode(schema uint32, body []byte) string {
	by := p.writers[schema]
	if by == nil {
		by = ask(schema)
		p.writers[schema] = by
	}
	if by.err != nil {
		p.doubt = fmt.Sprintf("schema %d: %v", schema, by.err)
		return "incompatible_schema"
	}
	p.message.ID, p.message.Increments = nil, p.message.Increments[:0]
	p.reader.Reset(body).Error = nil
	if by.isBatch {
		p.reader.ReadVal(by.schema, &p.message)
	} else {
		p.message.Increments = append(p.message.Increments, increment{})
		p.reader.ReadVal(by.schema, &p.message.Increments[0])
	}
	if p.reader.Peek(); p.reader.Error != io.EOF { // It must be at its end.
		return "undecodable"
	}
	return ""
}

// ask asks the registry for a schema, and the library how to read what it wrote.
func ask(id uint32) *writer {
	response, err := http.Get(fmt.Sprintf("%s/schemas/ids/%d", *registry, id))
	check("the registry", err)
	var found struct{ Schema string }
	check("the registry", json.NewDecoder(response.Body).Decode(&found))
	if strings.Contains(strings.ReplaceAll(found.Schema, "nanos", "micros"), "timestamp-micros") {
		return &writer{err: errors.New("it may have other times than milliseconds")}
	}
	// A writer's aliases do not matter, but the library goes by them.
	text := aliases.ReplaceAllString(found.Schema, `"aliases": []`)
	written, err := avro.ParseWithCache(text, "", &avro.SchemaCache{})
	if err != nil {
		return &writer{err: err}
	}
	schema, err := avro.NewSchemaCompatibility().Resolve(avro.MustParse(single), written)
	if err == nil {
		return &writer{schema: schema}
	}
	schema, err = avro.NewSchemaCompatibility().Resolve(batch, written)
	return &writer{schema, true, err}
}

// judge returns why a message that can be read may not be counted.
func judge(m *message, logged time.Time) string {
	latest, size := int64(math.MaxInt64), 0
	if ms := logged.UnixMilli(); ms >= 0 && ms < latest-rules.maxFutureSeconds*1000 {
		latest = ms + rules.maxFutureSeconds*1000
	}
	isText := m.ID == nil || utf8.ValidString(*m.ID)
	for _, one := range m.Increments {
		isText = isText && utf8.ValidString(one.Namespace) && utf8.ValidString(one.Key) &&
			(one.ID == nil || utf8.ValidString(*one.ID))
		namespace, key := len(one.Namespace), len(one.Key)
		switch {
		case min(namespace, key) == 0 || max(namespace, key) > 4096:
			return "name_out_of_range"
		case one.Namespace == "__tally":
			return "reserved_namespace"
		case one.At < 0 || one.At/1000 > math.MaxUint32:
			return "event_time_out_of_range"
		case one.At > latest:
			return "future_event_time"
		}
		size += namespace + key + 31
	}
	if !isText {
		return "undecodable"
	} else if size > 7<<20 {
		return "too_large"
	}
	return ""
}

// remember notes a message's ids. It returns which increments have one that was remembered, and
// whether the whole message is a duplicate.
func (p *partition) remember(m *message, offset int64) (isRepeated []bool, isDuplicate bool) {
	begins := offset - rules.horizonOffsets
	for p.recent.Len() > 0 && p.recent.Front().Value.(*sighting).offset < begins {
		p.forgetOldest()
	}
	isRepeated, isDuplicate = make([]bool, len(m.Increments)), len(m.Increments) > 0
	for i, one := range m.Increments {
		isRepeated[i] = p.see(one.Namespace, one.Key, one.ID, offset)
		isDuplicate = isDuplicate && isRepeated[i]
	}
	// No increment has the reserved namespace.
	return isRepeated, p.see("__tally", "", m.ID, offset) || isDuplicate
}

// see makes an id the one seen last, and returns whether it was remembered. An empty one is none.
func (p *partition) see(namespace, key string, id *string, offset int64) bool {
	if id == nil || *id == "" {
		return false
	} else if rules.idsWithin == "partition" && namespace != "__tally" {
		namespace, key = "", ""
	}
	if element := p.ids[identity{namespace, key, *id}]; element != nil {
		element.Value.(*sighting).offset = offset
		p.recent.MoveToBack(element)
		return true
	}
	if int64(len(p.ids)) == rules.maxIDs {
		p.forgetOldest()
	}
	of := identity{strings.Clone(namespace), strings.Clone(key), strings.Clone(*id)}
	p.ids[of] = p.recent.PushBack(&sighting{of, offset})
	return false
}

func (p *partition) forgetOldest() {
	delete(p.ids, p.recent.Remove(p.recent.Front()).(*sighting).of)
}

// compare returns all that differs between the log and ClickHouse.
func (p *partition) compare() []string {
	// The steps of two come to the highest offset.
	expected := map[string]int{"increments": int(p.position), "deltas": int(p.batches)}
	maps.Copy(expected, p.account)
	for key, row := range p.ledger {
		if sum := row.sum(); sum.Cmp(big.NewInt(int64(expected[key]))) != 0 {
			p.find("the ledger's %s: expected %d, found %v", key, expected[key], sum)
		}
	}
	for name, at := range p.at {
		if log, stored := p.cells[at].log, p.cells[at].stored; log != stored {
			bucket := time.Unix(int64(binary.BigEndian.Uint32([]byte(name))), 0).UTC()
			length, at := binary.Uvarint([]byte(name[4:]))
			p.find("namespace %q, key %q, bucket %s: expected %v in %d events, found %v in %d",
				name[4+at:][:length], name[4+at:][length:], bucket.Format(time.RFC3339),
				log.sum(), log.events, stored.sum(), stored.events)
		}
	}
	slices.Sort(p.found)
	return p.found
}
