// The verifier replays the log and compares it with ClickHouse, as docs/format.md alone says how.
package main

import (
	"bufio"
	"container/list"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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
	clickhouse = flag.String("clickhouse", "http://127.0.0.1:8123", "ClickHouse, over HTTP")
	database   = flag.String("database", "tally", "the database with the table counts")
	user       = flag.String("user", "default", "ClickHouse's user")
	password   = flag.String("password", "", "the user's password")
	show       = flag.Int("show", 20, "how many differences to print")
)

var rules struct { // What the table's comment says.
	bucketSeconds, maxFutureSeconds, horizonOffsets, maxIDs int64
	idsWithin                                               string
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
	replays := time.Now()
	for number, p := range all {
		running.Go(func() {
			p.doubt = p.whyUnreadable(starts[number].Offset, ends[number].Offset)
			if p.doubt == "" {
				read(*increments, number, 0, p.position, p.take)
			}
		})
	}
	running.Wait()
	os.Exit(report(all, began, time.Since(replays)))
}

// check ends the program if something cannot be read.
func check(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "could not check: %s: %v\n", what, err)
		os.Exit(2)
	}
}

// report returns the exit code: 0 if all agrees, 1 if something differs, 2 if not all is proven.
func report(all partitions, began time.Time, replay time.Duration) int {
	var wrong, unproven, counted, differences int
	for _, number := range slices.Sorted(maps.Keys(all)) {
		p := all[number]
		verdict, found := "agrees", []string{}
		if p.doubt != "" {
			verdict, unproven = "is NOT PROVEN: "+p.doubt, unproven+1
		} else if found = p.compare(); len(found) > 0 {
			verdict, wrong = "DIFFERS", wrong+1
		}
		fmt.Printf("partition %d up to offset %d, %d cells, %v: %s\n",
			number, p.position, len(p.cells), p.account, verdict)
		for _, difference := range found {
			if differences++; differences <= *show {
				fmt.Printf("partition %d: %s\n", number, difference)
			}
		}
		counted += p.account["increments.counted"]
	}
	fmt.Printf("%d partitions, %d increments in %.1f s, replayed in %.1f s of it: %d differ, "+
		"in %d places, %d not proven\n", len(all), counted, time.Since(began).Seconds(),
		replay.Seconds(), wrong, differences, unproven)
	if wrong > 0 {
		return 1
	}
	return 2 * min(unproven, 1)
}

const tables = `SELECT toInt64(partition), '', ifNull((SELECT comment
	FROM system.tables WHERE database = currentDatabase() AND name = 'counts'), '')
FROM counts GROUP BY partition`

func readTable(all partitions) {
	query(tables, 1, func(numbers []int64, texts [2][]byte) {
		all.get(int32(numbers[0]))
		_, err := fmt.Sscanf(string(texts[1])+" end", "tally: format=2 bucket_seconds=%d "+
			"max_future_seconds=%d horizon_offsets=%d max_ids=%d ids_within=%s end",
			&rules.bucketSeconds, &rules.maxFutureSeconds, &rules.horizonOffsets,
			&rules.maxIDs, &rules.idsWithin)
		check("rules that are known are not in the table's comment, "+string(texts[1]), err)
	})
}

// stored is one query, and so one snapshot, of the ledger and the counts of a partition.
const stored = `SELECT toInt64(toUInt32(bucket)), sum_high, sum_low, events, toInt64(high),
	toString(namespace), key FROM counts
WHERE partition = %d AND (namespace != '__tally' OR NOT startsWith(key, 'batch:'))`

func (p *partition) readStore(number int32) {
	query(fmt.Sprintf(stored, number), 5, func(numbers []int64, texts [2][]byte) {
		if string(texts[0]) != "__tally" {
			stored := &cellOf(p, texts[0], texts[1], uint32(numbers[0])).stored
			stored.add(numbers[1], uint64(numbers[2]), numbers[3])
			return
		}
		key, row := string(texts[1]), p.ledger[string(texts[1])]
		row.add(numbers[1], uint64(numbers[2]), numbers[3])
		p.ledger[key], p.reached[key] = row, max(p.reached[key], numbers[4])
	})
	p.position = p.reached["increments"]
}

// query takes each row of an answer of ClickHouse: as many numbers of 64 bits, and two texts.
func query(sql string, many int, take func(numbers []int64, texts [2][]byte)) {
	// ClickHouse answers once it has all rows, so that no error comes in their midst.
	options := url.Values{"database": {*database}, "wait_end_of_query": {"1"},
		"default_format": {"RowBinary"}, "user": {*user}, "password": {*password}}
	response, err := http.Post(*clickhouse+"/?"+options.Encode(), "", strings.NewReader(sql))
	check("ClickHouse", err)
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		check("ClickHouse", errors.New(string(said)))
	}
	numbers, texts := make([]int64, many), [2][]byte{}
	for rows := bufio.NewReaderSize(response.Body, 1<<20); ; take(numbers, texts) {
		err := binary.Read(rows, binary.LittleEndian, numbers)
		if err == io.EOF {
			return
		}
		for i, text := range texts {
			length, err1 := binary.ReadUvarint(rows)
			texts[i] = slices.Grow(text[:0], int(length))[:length]
			_, err2 := io.ReadFull(rows, texts[i])
			err = errors.Join(err, err1, err2)
		}
		check("the table counts", err)
	}
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

type counter struct{ namespace, key string }

type cell struct{ log, stored amount } // Of a counter in a bucket.

type partition struct {
	writers    map[uint32]*writer
	reader     *avro.Reader
	message    message
	position   int64             // How far ClickHouse has it.
	ledger     map[string]amount // What the rows of each key come to.
	reached    map[string]int64  // The highest offset of each key.
	account    map[string]int
	cells      []cell
	at         map[counter]map[uint32]int // Where each is, by its bucket.
	rejections map[int64]string           // The reasons, by offset.
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
		all[number] = &partition{reader: avro.NewReader(nil, 0, unlimited), recent: list.New(),
			writers: map[uint32]*writer{}, account: map[string]int{}, unread: map[uint32]bool{},
			rejections: map[int64]string{}, ids: map[identity]*list.Element{},
			ledger: map[string]amount{}, reached: map[string]int64{},
			at: map[counter]map[uint32]int{}}
	}
	return all[number]
}

// cellOf returns a cell, until the next one is asked for.
func cellOf[T string | []byte](p *partition, namespace, key T, bucket uint32) *cell {
	buckets := p.at[counter{string(namespace), string(key)}]
	if buckets == nil {
		buckets = map[uint32]int{}
		p.at[counter{string(namespace), string(key)}] = buckets
	}
	at, isKnown := buckets[bucket]
	if !isKnown {
		at, p.cells = len(p.cells), append(p.cells, cell{})
		buckets[bucket] = at
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

// remember notes a message's ids, and returns which increments, or whether all, are duplicates.
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

func (p *partition) compare() []string {
	for _, key := range []string{"deltas", "increments", "messages.counted",
		"messages.duplicate", "messages.rejected", "increments.counted"} {
		expected := big.NewInt(int64(p.account[key]))
		if key == "deltas" || key == "increments" {
			expected.SetInt64(p.reached[key]) // The steps come to the highest offset.
		}
		if row := p.ledger[key]; row.sum().Cmp(expected) != 0 {
			p.find("the ledger's %s: expected %d, found %v", key, expected, row.sum())
		}
	}
	for of, buckets := range p.at {
		for bucket, at := range buckets {
			if log, stored := p.cells[at].log, p.cells[at].stored; log != stored {
				p.find("namespace %q, key %q, bucket %s: expected %v in %d events, found %v in %d",
					of.namespace, of.key, time.Unix(int64(bucket), 0).UTC().Format(time.RFC3339),
					log.sum(), log.events, stored.sum(), stored.events)
			}
		}
	}
	slices.Sort(p.found)
	return p.found
}
