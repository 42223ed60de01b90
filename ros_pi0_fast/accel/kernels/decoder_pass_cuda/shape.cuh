// What the kernel is compiled for, and what a block has in shared memory.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int HEAD = 256;  // Size of a head: eight numbers a lane.
constexpr int THREADS = 32 * WARPS;
constexpr int KU = WIDTH;               // Inputs of a unit.
constexpr int KW = KU / WARPS;          // Inputs of a warp: 256.
constexpr int SLICES = HIDDEN / KU;     // Of the inputs of the last product.
constexpr int SHARERS = CTAS / SLICES;  // Blocks that share the outputs of a slice.
constexpr int QKV = (HEADS + 2) * HEAD;
constexpr int QKV_UNITS = QKV / 8, OUT_UNITS = WIDTH / 8, PAIRS = HIDDEN / 8;
constexpr int OWN = OUT_UNITS / SHARERS;  // Units of a block in the last product.
constexpr int ROW_BYTES = KU * BITS / 8;
constexpr int GROUP = 128;  // Inputs that share a scale in four bits.
constexpr int GROUP_BYTES = BITS == 4 ? KU / GROUP : 0;
constexpr int SCALE_BYTES = BITS == 16 ? 0 : 32;  // Of eight outputs.
constexpr int SLOT_BYTES = (8 * (ROW_BYTES + GROUP_BYTES) + SCALE_BYTES + 127) / 128 * 128;
constexpr int SPLITS = CTAS / HEADS;          // Blocks that share a head's slots.
constexpr int TILE = 8;                       // Slots that a warp attends to at once.
constexpr int SHARE = SPLITS * WARPS * TILE;  // Slots of all warps.
static_assert(TILES * SHARE >= SLOTS);
constexpr int DIMS = HEAD / SPLITS;         // Of a head's results, that a block adds up for all splits.
constexpr int ROWS = 8 * OWN / SLICES;      // Of the last product's, that it adds up for all slices.
constexpr int SUMS = T * 8;                 // Results of a unit.
constexpr int PIECES = BITS == 16 ? 8 : 4;  // Of 16 bytes of a token's inputs, in a lane.
constexpr int TOKEN_STRIDE = KU * (BITS == 16 ? 2 : 1) + 64;
constexpr int HEAD_STRIDE = HEAD + 32;
constexpr float LARGEST = 127 * 256, TINY = 1e-30f, EPSILON = 1e-6f, UNSEEN = -1e30f;

static_assert(KW == 256 && THREADS == HEAD && HEADS * HEAD == WIDTH && (BITS != 4 || GROUP_BYTES == 16) &&
              T <= 8);
static_assert(CTAS % SLICES == 0 && CTAS % HEADS == 0 && HEAD % SPLITS == 0 && OUT_UNITS % SHARERS == 0);
static_assert(SLICES * ROWS <= THREADS && SPLITS * T <= THREADS);

// Where the pointers of a layer are, among `PER_LAYER`.
enum {
    GAIN_ATTENTION,
    GAIN_FEED_FORWARD,
    VALUES_OF,
    SCALES_OF = VALUES_OF + 7,
    GROUPS_OF = SCALES_OF + (BITS < 16 ? 7 : 0),
    KEYS = GROUPS_OF + (BITS == 4 ? 7 : 0),
    CACHED_VALUES,
    PER_LAYER
};
enum { Q, K, V, OUT, GATE, UP, LINEAR };
enum { X, COS, SIN, BOUNDS, WORDS, FIRST_LAYER };

struct Shared {
    const void* taken[FIRST_LAYER + LAYERS * PER_LAYER + 1];
    u64 full[STAGES], empty[STAGES];
    float2 stat[WARPS][T];  // Of a warp's inputs: sum of squares, largest.
    float unit[T];          // Scale of each token's halves.
    float2 top[WARPS][T];   // Of a warp's slots: largest score, sum of exponentials.
    float2 tops[SPLITS * T], shares[SPLITS * T];
    float parts[T][HEAD];
    alignas(16) float weights[WARPS][T][TILES * TILE];
    alignas(16) float sums[2][WARPS][BATCH * SUMS];
    union alignas(16) {
        u8 tokens[BITS == 16 ? 1 : 2][T][TOKEN_STRIDE];
        struct {
            float mixed[2][WARPS][HEAD];
            u16 queries[T][HEAD_STRIDE], keys[T][HEAD_STRIDE], values[T][HEAD_STRIDE];
        };
    };
};

static_assert(STAGES * SLOT_BYTES + sizeof(Shared) <= MEMORY);
