// The verifier replays the log and compares it with ClickHouse, as docs/format.md alone says how.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"math"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hamba/avro/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	brokers    = flag.String("brokers", "127.0.0.1:9092", "Kafka's brokers, joined by commas")
	increments = flag.String("increments", "increments", "the topic of increments")
	rejected   = flag.String("rejected", "increments.rejected", "the topic of rejected messages")
	registry   = flag.String("registry", "http://127.0.0.1:8081/apis/ccompat/v7", "the registry")
	clickhouse = flag.String("clickhouse", "http://127.0.0.1:8123", "http://user:password@host:port")
	database   = flag.String("database", "tally", "the database with the table counts")
	show       = flag.Int("show", 20, "how many differences to print of a partition")
)

var rules struct { // What the table's comment says.
	bucketSeconds, maxFutureSeconds, horizonOffsets, maxIDs, minEventSeconds int64
	idsWithin                                                                string
}

func main() {
	flag.Parse()
	began, all := time.Now(), partitions{}
	readTable(all)
	starts, ends := bounds(*increments)
	for number := range ends {
		all.get(number)
	}
	readRejections(all)
	var running sync.WaitGroup
	for number, p := range all {
		running.Go(func() { p.readStore(number) })
	}
	running.Wait()
	for number, p := range all {
		running.Go(func() {
			p.doubt = p.whyUnreadable(starts[number].Offset, ends[number].Offset)
			if p.doubt == "" {
				read(*increments, number, 0, p.position, p.take)
				p.compare()
			}
		})
	}
	running.Wait()
	os.Exit(report(all, began))
}

// check ends the program if something cannot be read.
func check(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "could not check: %s: %v\n", what, err)
		os.Exit(2)
	}
}

// report returns the exit code: 0 if all agrees, 1 if something differs, 2 if not all is proven.
func report(all partitions, began time.Time) int {
	var wrong, unproven, differences, counted int64
	for _, number := range slices.Sorted(maps.Keys(all)) {
		p := all[number]
		verdict := "agrees"
		if p.doubt != "" {
			verdict, unproven, p.found = "is NOT PROVEN: "+p.doubt, unproven+1, nil
		} else if len(p.found) > 0 {
			verdict, wrong = "DIFFERS", wrong+1
		}
		fmt.Printf("partition %d up to offset %d, %d cells, %v: %s\n",
			number, p.position, p.cells, p.account, verdict)
		for _, difference := range p.found[:min(*show, len(p.found))] {
			fmt.Printf("partition %d: %s\n", number, difference)
		}
		counted, differences = counted+p.account["increments.counted"], differences+int64(len(p.found))
	}
	fmt.Printf("%d partitions, %d increments in %.1f s: %d differ, in %d places, %d not proven\n",
		len(all), counted, time.Since(began).Seconds(), wrong, differences, unproven)
	if wrong > 0 {
		return 1
	}
	return 2 * int(min(unproven, 1))
}

const tables = `SELECT toInt64(partition), ifNull((SELECT comment FROM system.tables
	WHERE database = currentDatabase() AND name = 'counts'), '') FROM counts GROUP BY partition`

func readTable(all partitions) {
	query(tables, func(numbers []int64, comment []byte) {
		all.get(int32(numbers[0]))
		known, earliest, _ := strings.Cut(string(comment), " min_event_seconds=")
		_, err := fmt.Sscanf(known+" 0"+earliest+" end", "tally: format=2 bucket_seconds=%d "+
			"max_future_seconds=%d horizon_offsets=%d max_ids=%d ids_within=%s %d end",
			&rules.bucketSeconds, &rules.maxFutureSeconds, &rules.horizonOffsets,
			&rules.maxIDs, &rules.idsWithin, &rules.minEventSeconds)
		check("rules that are known are not in the table's comment, "+string(comment), err)
	})
}

// stored is one query, and so one snapshot, of the ledger and the counts of a partition.
const stored = `SELECT sum_high, events, sum_low, toInt64(toUInt32(bucket)), toInt64(high),
	toInt64(length(CAST(namespace AS String))), concat(namespace, key) FROM counts
WHERE partition = %d AND (namespace != '__tally' OR NOT startsWith(key, 'batch:'))`

func (p *partition) readStore(number int32) {
	query(fmt.Sprintf(stored, number), func(numbers []int64, name []byte) {
		found := amount{numbers[0], numbers[1], uint64(numbers[2])}
		namespace, key := name[:numbers[5]], name[numbers[5]:]
		if string(namespace) != "__tally" {
			note(p, 1, namespace, key, uint32(numbers[3]), found)
			return
		}
		row := p.ledger[string(key)]
		row.add(found.high, found.low, found.events)
		p.ledger[string(key)] = row
		p.reached[string(key)] = max(p.reached[string(key)], numbers[4])
	})
	p.position = p.reached["increments"]
}

// query takes each row of an answer of ClickHouse: some numbers of 64 bits, and a text.
func query(sql string, take func(numbers []int64, text []byte)) {
	// ClickHouse answers once it has all rows, so that no error comes in their midst.
	options := url.Values{"database": {*database}, "wait_end_of_query": {"1"}}.Encode()
	response, err := http.Post(*clickhouse+"/?"+options, "", strings.NewReader(sql+" FORMAT Native"))
	check("ClickHouse", err)
	body := bufio.NewReaderSize(response.Body, 1<<20)
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(body, 1000))
		check("ClickHouse", errors.New(string(said)))
	}
	for text := []byte(nil); ; { // Each block has its numbers by column, and its texts at the end.
		columns, err := binary.ReadUvarint(body)
		if err == io.EOF {
			return
		}
		rows, _ := binary.ReadUvarint(body)
		cells, numbers := make([]byte, 8*rows*columns), make([]int64, columns-1)
		for of := range columns {
			text = readText(body, readText(body, text)) // The column's name, and its type.
			if of < columns-1 {
				_, err = io.ReadFull(body, cells[8*rows*of:][:8*rows])
				check("ClickHouse", err)
			}
		}
		for row := range rows {
			for of := range columns - 1 {
				numbers[of] = int64(binary.LittleEndian.Uint64(cells[8*(rows*of+row):]))
			}
			text = readText(body, text)
			take(numbers, text)
		}
	}
}

func readText(from *bufio.Reader, into []byte) []byte {
	length, err1 := binary.ReadUvarint(from)
	into = slices.Grow(into[:0], int(length))[:length]
	_, err2 := io.ReadFull(from, into)
	check("ClickHouse", errors.Join(err1, err2))
	return into
}

func connect(options ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(strings.Split(*brokers, ",")...))...)
	check("Kafka", err)
	return client
}

func bounds(topic string) (starts, ends map[int32]kadm.ListedOffset) {
	client := connect()
	defer client.Close()
	first, err1 := kadm.NewClient(client).ListStartOffsets(context.Background(), topic)
	next, err2 := kadm.NewClient(client).ListEndOffsets(context.Background(), topic)
	check("topic "+topic, errors.Join(err1, err2, first.Error(), next.Error()))
	return first[topic], next[topic]
}

// read takes a partition's committed messages, up to where a message or a marker ends.
func read(topic string, partition int32, from, to int64, take func(*kgo.Record)) {
	at := map[int32]kgo.Offset{partition: kgo.NewOffset().At(from)}
	client := connect(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.FetchMaxPartitionBytes(4<<20),
		kgo.FetchMaxWait(100*time.Millisecond))
	defer client.Close()
	for what := fmt.Sprintf("topic %s, partition %d", topic, partition); from < to; {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		fetches := client.PollFetches(ctx)
		stop()
		check(what, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if from = r.Offset + 1; from <= to && !r.Attrs.IsControl() {
				take(r)
			}
		})
	}
}

// readRejections waits for open transactions: the batch of one may be stored already.
func readRejections(all partitions) {
	starts, ends := bounds(*rejected)
	for number := range ends {
		read(*rejected, number, starts[number].Offset, ends[number].Offset, func(r *kgo.Record) {
			headers := map[string]string{}
			for _, header := range r.Headers {
				headers[header.Key] = string(header.Value)
			}
			of, err1 := strconv.ParseUint(headers["tally.partition"], 10, 31)
			offset, err2 := strconv.ParseInt(headers["tally.offset"], 10, 64)
			// What no aggregator wrote says nothing.
			if p := all[int32(of)]; p != nil && err1 == nil && err2 == nil {
				p.rejections[offset] = headers["tally.reason"]
			}
		})
	}
}

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
	aliases = regexp.MustCompile(`"aliases"\s*:\s*\[[^\]]*\]`)
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

var seed = maphash.MakeSeed()

type partition struct {
	writers  map[uint32]*writer
	reader   *avro.Reader
	message  message
	position int64             // How far ClickHouse has it.
	ledger   map[string]amount // What the rows of each key come to.
	reached  map[string]int64  // The highest offset of each key.
	account  map[string]int64
	// Each shard has what the log (0) and ClickHouse (1) say of some cells, one thing after another,
	// and is added up by itself, in a map that fits a core's cache. (A cell: a counter in a bucket.)
	shards     [512]strings.Builder
	name, said []byte // What was noted last.
	cells      int
	rejections map[int64]string       // The reasons, by offset.
	ids        map[identity]*sighting // The last one of each remembered id.
	recent     []*sighting            // The oldest first; not all are the last ones.
	unread     map[string]bool        // The schemas that messages were rejected for.
	doubt      string                 // Why nothing can be said of the partition.
	found      []string
}

type identity struct{ namespace, key, id string }

type sighting struct {
	of     identity
	offset int64
}

type partitions map[int32]*partition

func (all partitions) get(number int32) *partition {
	if all[number] == nil {
		unlimited := avro.WithReaderConfig(avro.Config{MaxByteSliceSize: -1}.Freeze())
		all[number] = &partition{reader: avro.NewReader(nil, 0, unlimited),
			writers: map[uint32]*writer{}, account: map[string]int64{}, unread: map[string]bool{},
			rejections: map[int64]string{}, ids: map[identity]*sighting{},
			ledger: map[string]amount{}, reached: map[string]int64{}}
	}
	return all[number]
}

func note[T string | []byte](p *partition, who int64, namespace, key T, bucket uint32, a amount) {
	p.name = binary.BigEndian.AppendUint32(p.name[:0], bucket)
	p.name = binary.BigEndian.AppendUint16(p.name, uint16(len(namespace)))
	p.name = append(append(p.name, namespace...), key...)
	p.said = binary.AppendVarint(binary.AppendVarint(p.said[:0], who), a.high)
	p.said = binary.AppendVarint(binary.AppendVarint(p.said, int64(a.low)), a.events)
	p.said = binary.AppendVarint(p.said, int64(len(p.name)))
	p.shards[maphash.Bytes(seed, p.name)%uint64(len(p.shards))].Write(append(p.said, p.name...))
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
	said := p.rejections[r.Offset]
	if said == "unknown_schema" || said == "incompatible_schema" {
		// Nobody knows what the registry knew then, so this is believed.
		p.account["messages.rejected"]++
		if p.unread[string(r.Value[:min(5, len(r.Value))])] = true; len(p.unread) > 64 {
			p.doubt = "of more than 64 schemas nothing is known, nor which ids are remembered"
		}
		return
	}
	m, why := &p.message, p.decode(r)
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
	isRepeated, isDuplicate := p.remember(m, r.Offset)
	if isDuplicate {
		p.account["messages.duplicate"]++
		return
	}
	p.account["messages.counted"]++
	for i := range m.Increments {
		if one := &m.Increments[i]; !isRepeated[i] {
			bucket := one.At / 1000 / rules.bucketSeconds * rules.bucketSeconds
			delta := amount{one.Delta >> 32, 1, uint64(one.Delta) & math.MaxUint32}
			note(p, 0, one.Namespace, one.Key, uint32(bucket), delta)
			p.account["increments.counted"]++
		}
	}
}

// decode reads a message by the schema of its writer, or returns why it may not be counted.
func (p *partition) decode(r *kgo.Record) string {
	guid := func(h kgo.RecordHeader) bool { return h.Key == "__value_schema_id" && len(h.Value) == 17 }
	if len(r.Value) < 5 || r.Value[0] != 0 || slices.ContainsFunc(r.Headers, guid) {
		return "not_framed"
	}
	schema := binary.BigEndian.Uint32(r.Value[1:])
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
	p.reader.Reset(r.Value[5:]).Error = nil
	if by.isBatch {
		p.reader.ReadVal(by.schema, &p.message)
	} else {
		p.message.Increments = append(p.message.Increments, increment{})
		p.reader.ReadVal(by.schema, &p.message.Increments[0])
	}
	if p.reader.Peek(); p.reader.Error != io.EOF { // It must be at its end.
		return "undecodable"
	}
	return judge(&p.message, r.Timestamp)
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
		case one.At < rules.minEventSeconds*1000 || one.At/1000 > math.MaxUint32:
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

// remember notes a message's ids, and returns which increments, or whether all, are duplicates.
func (p *partition) remember(m *message, offset int64) (isRepeated []bool, isDuplicate bool) {
	for len(p.recent) > 0 && p.recent[0].offset < offset-rules.horizonOffsets {
		p.forget()
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
	of := identity{strings.Clone(namespace), strings.Clone(key), strings.Clone(*id)}
	_, isKnown := p.ids[of]
	for !isKnown && int64(len(p.ids)) == rules.maxIDs {
		p.forget()
	}
	p.ids[of] = &sighting{of, offset}
	p.recent = append(p.recent, p.ids[of])
	return isKnown
}

func (p *partition) forget() {
	if oldest := p.recent[0]; p.ids[oldest.of] == oldest {
		delete(p.ids, oldest.of)
	}
	p.recent = p.recent[1:]
}

func (p *partition) compare() {
	// The steps of these rows come to their highest offset.
	p.account["deltas"], p.account["increments"] = p.reached["deltas"], p.position
	for _, key := range []string{"deltas", "increments", "messages.counted",
		"messages.duplicate", "messages.rejected", "increments.counted"} {
		row, expected := p.ledger[key], p.account[key]
		if row.sum().Cmp(big.NewInt(expected)) != 0 {
			p.find("the ledger's %s: expected %d, found %v", key, expected, row.sum())
		}
	}
	at, cells := map[string]int{}, [][2]amount{}
	for i := range p.shards {
		clear(at)
		cells = cells[:0]
		for all := p.shards[i].String(); len(all) > 0; {
			said, start := [5]int64{}, [5 * binary.MaxVarintLen64]byte{}
			rest := start[:copy(start[:], all)]
			for i := range said {
				value, size := binary.Varint(rest)
				said[i], rest, all = value, rest[size:], all[size:]
			}
			place, isKnown := at[all[:said[4]]]
			if !isKnown {
				place, cells = len(cells), append(cells, [2]amount{})
				at[all[:said[4]]] = place
			}
			cells[place][said[0]].add(said[1], uint64(said[2]), said[3])
			all = all[said[4]:]
		}
		p.shards[i].Reset()
		p.cells += len(cells)
		for name, place := range at {
			if log, stored := cells[place][0], cells[place][1]; log != stored {
				bucket, rest := int64(binary.BigEndian.Uint32([]byte(name))), name[6:]
				split := int(name[4])<<8 + int(name[5])
				p.find("namespace %q, key %q, bucket %s: expected %v in %d events, found %v in %d",
					rest[:split], rest[split:], time.Unix(bucket, 0).UTC().Format(time.RFC3339),
					log.sum(), log.events, stored.sum(), stored.events)
			}
		}
	}
	slices.Sort(p.found)
}
